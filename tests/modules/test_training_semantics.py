"""What a drop-in must get right in training besides numbers: hooks on saved tensors, checkpoints, compilers, autocast."""

import copy

import pytest
import torch
from resnets import narrow
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from training_cases import X, block, check, odd_modes

import resnet_fused
from resnet_fused.measure.oracle import by_modules
from resnet_fused.ops.training import Block, Unit, encoding


def close(models, rtol=2e-3):
    ours, eager = models
    for (name, p), q in zip(ours.named_parameters(), eager.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert p.grad.dtype == q.grad.dtype and (p.grad - q.grad).norm() <= rtol * q.grad.norm() + 1e-5, name
    for (name, b), c in zip(ours.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-4, atol=1e-4, msg=name)


def pair(**kwargs):
    model = narrow(**kwargs).train()
    return model, by_modules(model)


def test_a_shared_block():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block("identity")

        def forward(self, x):
            return self.block(self.block(x))

    check(Twice().train(), torch.randn(3, 16, 6, 7), torch.randn(3, 16, 6, 7))


def test_a_batch_norm_that_is_used_twice():
    """In one block, and through a block that a memory-efficient layer holds twice: averages over batches count each use."""
    models = [nn.Sequential(block("identity"))]
    models[0][0].bn2 = models[0][0].bn1
    models[0][0].bn1.momentum = None
    models.append(by_modules(models[0]))
    x = torch.randn(3, 16, 6, 7)
    for m in models:
        m(x).square().sum().backward()
    close(models)

    models = pair(memory_efficient=True)
    for m in models:
        m.layer1[0].bn1.momentum = None
        m.layer1.append(m.layer1[0])
        m(torch.ones(X) * torch.arange(40.0).cos()).square().sum().backward()
    close(models)
    assert models[0].layer1[0].bn1.num_batches_tracked == 2


def test_two_forwards_before_one_backward_and_retain_graph():
    x, y = torch.randn(3, 16, 6, 7), torch.randn(2, 16, 5, 5)
    models = [block("projection", stride=2)]
    models.append(by_modules(models[0]))
    for m in models:
        loss = m(x).square().sum() + m(y).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    close(models)


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_the_whole_body(reentrant, memory_efficient):
    models = pair(memory_efficient=memory_efficient)
    x = torch.randn(X)
    for m in models:
        body = lambda x, m=m: m._fused_layer(m.layer2, m._fused_layer(m.layer1, m._fused_stem(x, m.maxpool)))  # noqa: E731
        checkpoint(body, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    close(models)
    assert models[0].layer1[0].bn2.num_batches_tracked == 2


def test_saved_tensors_go_through_hooks():
    """As save_on_cpu does: what comes back is another tensor with the same values."""
    models = pair()
    models = models[0], copy.deepcopy(models[0])
    x, packed = torch.randn(X), []

    def pack(t):
        packed.append(t.shape)
        return t.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = models[0](x).square().sum()
    loss.backward()
    models[1](x).square().sum().backward()
    assert len(packed) > 60
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("spoil", [lambda x, y: y.mul_(2), lambda x, y: x.detach().mul_(2)], ids=["output", "input"])
def test_a_modified_saved_tensor_is_noticed(spoil):
    model, x = block("identity"), torch.randn(2, 16, 4, 4)
    y = model(x)
    spoil(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_and_gradient_scaling(dtype):
    """Two steps of SGD: gradients arrive in the dtype of the parameters, the scaler skips a step that overflows."""
    model = nn.Sequential(
        block("projection", stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)
    ).train()
    x, target, losses = torch.randn(3, 16, 9, 8), torch.tensor([0, 1, 2]), []
    for m in (model, by_modules(model)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for step in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                logits = m(x)
            assert logits.dtype == dtype
            loss = nn.functional.cross_entropy(logits.float(), target) * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        assert all(p.grad.dtype == torch.float32 for p in m.parameters())
        assert scaler.get_scale() == 128.0
    ours, eager = losses[:3], losses[3:]
    assert ours[0] == pytest.approx(eager[0], rel=0.02) and ours[2] == pytest.approx(eager[2], rel=0.05)
    assert ours[1] == eager[1] == float("inf")


def test_nested_autocast_switched_off():
    models = pair()
    x = torch.randn(X)
    for m in models:
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            out = m(x)
        assert out.dtype == torch.float32
        out.square().sum().backward()
    close(models)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_compiled_without_a_graph_break(memory_efficient):
    torch._dynamo.reset()
    models = pair(memory_efficient=memory_efficient)
    x = torch.randn(X)
    for m in models:
        odd_modes(m)
    compiled = torch.compile(models[0], fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(x).square().sum().backward()
        models[1](x).square().sum().backward()
    close(models)


def test_compiled_with_inductor():
    torch._dynamo.reset()
    models = [block("projection", stride=2)]
    models.append(by_modules(models[0]))
    x = torch.randn(3, 16, 8, 8)
    torch.compile(models[0], fullgraph=True)(x).square().sum().backward()
    models[1](x).square().sum().backward()
    close(models)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_step_asks_the_device_nothing(memory_efficient):
    """On fake tensors any read of a value raises: what passes can be captured in a CUDA graph. Buffers are made in the mode,
    because torch 2.14 knows the value of a counter that was copied into it."""
    model = odd_modes(narrow(memory_efficient=memory_efficient).train())
    with FakeTensorMode() as mode, resnet_fused.strict(False):
        for module in model.modules():
            for kind in (module._parameters, module._buffers):
                for name, t in kind.items():
                    kind[name] = t if t is None else mode.from_tensor(t)
            for name, t in module._buffers.items():
                module._buffers[name] = torch.empty_like(t)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.empty(X)).square().sum().backward()
        optimizer.step()
        with pytest.raises(Exception, match=r"item|data.dependent|_local_scalar_dense"):
            float(model.layer3[0].bn1.num_batches_tracked)


def test_a_step_captured_in_a_cuda_graph(device):
    """Forward, backward and SGD in one graph: replayed twice it is two steps."""
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU; test_a_step_asks_the_device_nothing is what can be tested without")
    captured = odd_modes(narrow().train()).to(device, memory_format=torch.channels_last)
    plain = copy.deepcopy(captured)
    x = torch.randn(X, device=device).contiguous(memory_format=torch.channels_last)

    def step(model, optimizer):
        optimizer.zero_grad(set_to_none=False)
        model(x).square().mean().backward()
        optimizer.step()

    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (captured, plain)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(captured, optimizers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, optimizers[0])  # recorded, not run
    for _ in range(2):
        graph.replay()
    for _ in range(5):
        step(plain, optimizers[1])
    for (name, t), u in zip(captured.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(t, u, rtol=1e-4, atol=1e-5, msg=name)


def test_parameters_of_a_frozen_stage_get_no_gradient():
    models = pair()
    x = torch.randn(X)
    for m in models:
        for part in (m.conv1, m.bn1, m.layer1):
            part.requires_grad_(False)
        m.bn1.eval(), m.layer1.eval()
        m(x).square().sum().backward()
        assert m.conv1.weight.grad is None and m.layer1[0].bn1.weight.grad is None
    close(models)


def test_ops_pass_opcheck():
    """Schemas, fakes and gradients of the registered ops, as compilers see them."""
    last = torch.channels_last

    def unit(k, c, r, stride=1, frozen=False):
        weight = torch.randn(k, c, r, r).contiguous(memory_format=last).requires_grad_()
        affine = [torch.rand(k).requires_grad_() for _ in range(2)]
        running = [torch.zeros(k), torch.ones(k)] if frozen else [None, None]
        return Unit(weight, *affine, *running, [stride] * 2, [r // 2] * 2, [1, 1], 1, 1e-5)

    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=last).requires_grad_()
    chains = [
        [Block([unit(8, 8, 3), unit(8, 8, 3, frozen=True)], None)],
        [
            Block([unit(16, 8, 3, 2), unit(16, 16, 3)], unit(16, 8, 1, 2)),
            Block([unit(16, 16, 3), unit(16, 16, 3)], None),
        ],
    ]
    for blocks in chains:
        for recompute in (False, True):
            torch.library.opcheck(torch.ops.resnet_fused.residual_blocks, (x, *encoding.encode(blocks), recompute))
    pool = [3, 3, 2, 2, 1, 1, 1, 1, 0]
    stem = encoding.encode([Block([unit(8, 8, 7, 2)], None)])
    for recompute in (False, True):
        torch.library.opcheck(torch.ops.resnet_fused.stem, (x, *stem, pool, recompute))


def test_statistics_of_torch_are_restored_after_swa():
    """update_bn resets the statistics and sets momentum to None: an average over all batches."""
    models = pair()
    torch.manual_seed(0)
    data = [torch.randn(X) for _ in range(3)]
    for m in models:
        torch.optim.swa_utils.update_bn(data, m)
    for (name, b), c in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-4, atol=1e-4, msg=name)
    assert models[0].bn1.num_batches_tracked == 3
