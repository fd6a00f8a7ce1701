"""Never in the way: hooks, replaced children, compilers, transforms and wrappers see what eager shows them."""

import pytest
import torch
from resnets import narrow
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import resnet_fused
from resnet_fused import dispatch, ops, strict
from resnet_fused.measure.oracle import by_modules

X = (2, 3, 40, 40)


def outputs(model, x):
    with dispatch.record() as rows:
        out = model(x)
    return out, {choice.backend for _, _, choice in rows}


def parts(block):
    return {"conv1": block.conv1, "bn2": block.bn2, "relu": block.relu, "downsample": block.downsample}


@pytest.mark.parametrize(
    ("part", "register"),
    [(part, kind) for part in ("conv1", "bn2", "relu", "downsample") for kind in ("forward_hook", "forward_pre_hook")]
    # Not on bn2 or relu: torch refuses backward hooks on what is modified in place afterwards.
    + [("conv1", "full_backward_hook"), ("conv1", "full_backward_pre_hook")],
)
def test_a_hooked_child_sends_its_block_through_its_modules(part, register):
    model = narrow().eval()
    block, x = model.layer2[0], torch.randn(X)
    expected = by_modules(model)(x)
    calls = []
    assert block.why_not_fused(x) is None
    handle = getattr(parts(block)[part], f"register_{register}")(lambda *args: calls.append(args[0]))
    assert f"{part} carries a hook" == block.why_not_fused(x)
    out = model(x.requires_grad_())
    out.sum().backward()
    assert len(calls) == (2 if part == "relu" else 1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert block.why_not_fused(x) is None


def test_hooks_on_blocks_and_on_the_network_do_not_matter():
    model, x = narrow().eval(), torch.randn(X)
    seen = []
    model.layer1[0].register_forward_hook(lambda m, i, o: seen.append(o.shape))
    model.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    assert model.layer1[0].why_not_fused(x) is None
    model(x)
    assert seen == [(2, 64, 10, 10), (2, 5)]
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    assert model.layer1[0].why_not_fused(x) == "a global module hook is registered"
    handle.remove()


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        pytest.param(lambda b: prune.l1_unstructured(b.conv1, "weight", 0.5), "conv1 carries a hook", id="pruned"),
        pytest.param(
            lambda b: parametrize.register_parametrization(b.conv2, "weight", Doubled()),
            "conv2 is a ParametrizedConv2d", id="parametrized",
        ),
        pytest.param(lambda b: setattr(b, "bn1", nn.GroupNorm(4, 128)), "bn1 is a GroupNorm", id="another-norm"),
        pytest.param(lambda b: setattr(b, "bn2", nn.Identity()), "bn2 is a Identity", id="identity"),
        pytest.param(lambda b: setattr(b, "relu", nn.GELU()), "relu is a GELU", id="another-activation"),
        pytest.param(
            lambda b: setattr(b, "conv2", nn.Conv2d(128, 128, 3, padding=1)), "conv2 has a bias", id="bias"
        ),
        pytest.param(
            lambda b: setattr(b, "conv2", nn.Conv2d(128, 128, 3, padding=1, bias=False, padding_mode="reflect")),
            "conv2 has padding_mode 'reflect'", id="padding-mode",
        ),
        pytest.param(
            lambda b: setattr(b, "downsample", nn.Sequential(nn.Conv2d(64, 128, 1, 2), nn.BatchNorm2d(128))),
            "downsample.0 has a bias", id="shortcut-bias",
        ),
        pytest.param(
            lambda b: setattr(b.conv1, "forward", b.conv1.forward), "conv1 carries a hook", id="patched-forward"
        ),
    ],
)  # fmt: skip
def test_what_is_not_plain_torch_runs_by_its_modules(edit, reason):
    model, x = narrow().eval(), torch.randn(X)
    edit(model.layer2[0])
    assert reason in model.layer2[0].why_not_fused(x)
    out = model(x)
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)  # everything by modules
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
    handle.remove()
    row = next(r for r in resnet_fused.explain(model, x).rows if r["name"].startswith("layer2.0"))
    assert reason in row["reason"]


@pytest.mark.parametrize("training", [False, True])
def test_compile_fullgraph(training):
    torch._dynamo.reset()
    model, x = narrow().train(training), torch.randn(X)
    expected = by_modules(model)(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, expected, rtol=2e-3 if training else 1e-4, atol=1e-3 if training else 1e-5)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.bn1.num_batches_tracked == int(training)


def test_compile_with_inductor_and_export():
    torch._dynamo.reset()
    model, x = narrow().eval(), torch.randn(X)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,))
    assert any("resnet_fused.conv_bn_relu" in str(n.target) for n in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), expected)


def test_tracing_sees_torchs_operators():
    model, x = narrow().eval(), torch.randn(X)
    traced = torch.jit.trace(model, x)
    assert "resnet_fused::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
    graph = torch.fx.symbolic_trace(model)
    names = [n.name for n in graph.graph.nodes]
    assert {"layer1_0_conv1", "layer1_0_relu", "layer1_0_relu_1", "layer2_0_downsample_1"} <= set(names)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_function_transforms():
    model, x = narrow().eval(), torch.randn(X)
    state = dict(model.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(model, state, (x,)), model(x))

    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    expected = torch.func.grad(loss)(state, x[0])
    for name, g in per_sample.items():
        torch.testing.assert_close(g[0], expected[name], rtol=1e-3, atol=1e-3)
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    step = 1e-3
    numeric = (by_modules(model).double()(x.double() + step) - by_modules(model).double()(x.double() - step)) / (
        2 * step
    )
    torch.testing.assert_close(tangent.double(), numeric, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_batches_as_eager_does(reentrant):
    model, reference = narrow().train(), by_modules(narrow()).train()
    x = torch.randn(X)
    grads = []
    for m in (model, reference):
        h = m.maxpool(m.relu(m.bn1(m.conv1(x)))).requires_grad_()
        checkpoint(m.layer1, h, use_reentrant=reentrant).sum().backward()
        grads.append(m.layer1[0].conv1.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    assert model.layer1[0].bn1.num_batches_tracked == reference.layer1[0].bn1.num_batches_tracked == 2
    torch.testing.assert_close(model.layer1[0].bn1.running_var, reference.layer1[0].bn1.running_var)


def test_two_forwards_before_one_backward_and_retained_graphs():
    model, reference = narrow().train(), by_modules(narrow()).train()
    x, y = torch.randn(X), torch.randn(X)
    for m in (model, reference):
        loss = m(x).square().sum() + m(y).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 2e-3 * q.grad.norm() + 1e-5


def test_modifying_a_saved_tensor_is_noticed():
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = ops.bn_relu(x, torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8), training=True)
    out.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_no_grad_inference_mode_and_meta():
    model, x = narrow().eval(), torch.randn(X)
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
        model.train()(x)  # running statistics that are written in inference mode
    assert narrow().to("meta")(torch.empty(X, device="meta")).shape == (2, 5)


def test_strict_mode_and_forced_backends():
    x = torch.randn(2, 3, 4, 4)
    with resnet_fused.backend("eager"):
        assert torch.equal(ops.add_relu(x, x), torch.relu(2 * x))
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*, not 'tensorrt'"):
        resnet_fused.backend("tensorrt")
    odd = x.permute(0, 2, 1, 3).permute(0, 2, 1, 3)[:, :, ::2]
    assert outputs(lambda t: ops.add_relu(t, t), odd)[1] <= {"native", "triton"}
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="backend 'cuda' cannot run here: "):
            resnet_fused.backend("cuda")
    with resnet_fused.backend("triton"), strict(True):
        assert outputs(lambda t: ops.add_relu(t, t), x)[1] == {"triton"}


def test_ops_pass_opcheck():
    last = torch.channels_last
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=last)
    c = [torch.rand(8) + 0.5 for _ in range(4)]
    w = torch.randn(16, 8, 3, 3)
    c16 = [torch.rand(16) + 0.5 for _ in range(4)]
    library = torch.ops.resnet_fused
    for t in (x, x.contiguous()):
        grad = t.detach().clone().requires_grad_()
        out = torch.relu(t)
        samples = [
            (library.add_relu, (grad, t)),
            (library.add_relu_backward, (t, out)),
            (library.bn_stats, (t, c[0].clone(), c[1].clone(), None, 0.1, 1e-5)),
            (library.bn_stats, (t, c[0].clone(), c[1].clone(), torch.tensor(3), 0.0, 1e-5)),
            (library.bn_relu, (grad, c[0], c[1], c[2].clone().requires_grad_(), c[3], t, 1e-5, False, 1)),
            (library.bn_relu, (grad, c[0], c[1], c[2], None, None, 1e-5, True, 0)),
            (library.bn_relu_backward, (t, t, out, c[0], c[1], c[2], None, 1, True, True, True)),
            (
                library.conv_bn_relu,
                (grad, w, c16[0], c16[1], c16[2], c16[3], None, [2, 2], [1, 1], [1, 1], 1, 1e-5, 1),
            ),
        ]
        for op, args in samples:
            torch.library.opcheck(op, args)
