"""convert(): models that others wrote get fused blocks and keep everything else; unconvert() is exactly back."""

import copy
import io
import pickle

import pytest
import torch
from foreign import (
    IMPOSTORS,
    BasicBlock,
    Bystander,
    ConvTwice,
    FrozenBatchNorm2d,
    LateWriter,
    OutOfPlace,
    Plain,
    StochasticDepth,
    lively,
    run,
    timm,
    tv,
    tv_net,
    tv_resnet,
)
from nets import NETS, fused_sites
from torch import nn

import resnet_fused
from resnet_fused import convert, dispatch, explain, unconvert
from resnet_fused.conversion import classes
from resnet_fused.conversion.convert import candidates, is_converted
from resnet_fused.measure.accuracy import assert_within_budget

X = (2, 3, 40, 56)


def objects(model):
    """Everything a conversion must leave alone: identities of tensors and children, attributes, order."""
    return [
        (
            name,
            [(k, id(v)) for store in (m._parameters, m._buffers, m._modules) for k, v in store.items()],
            {**m.__dict__},
        )
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("name", [name for name, (_, modules, _) in NETS.items() if modules])
def test_every_network_that_people_have(name):
    """The numbers are eager's, everything else is the same object, and the way back is exact."""
    build, modules, sites = NETS[name]
    model, x = lively(build), torch.randn(X)
    reference = copy.deepcopy(model)
    exact, eager = run(copy.deepcopy(model).double(), x.double())[0], run(reference, x)[0]
    before = objects(model)
    assert convert(model) is model
    assert objects(model) == before and repr(model) == repr(reference)
    assert list(model.state_dict()) == list(reference.state_dict())
    assert sum(map(is_converted, model.modules())) == modules
    assert all(isinstance(a, type(b)) for a, b in zip(model.modules(), reference.modules(), strict=True))
    out, rows = run(model, x)
    assert fused_sites(rows) == sites and all(backend != "eager" for _, backend in rows)
    assert_within_budget(out, eager, exact, name, channel_dim=None)
    assert out.stride() == eager.stride()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again, copied_rows = run(copied, x)
        assert torch.equal(again, out) and copied_rows == rows
    unconvert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in reference.modules()] and objects(model) == before
    back, rows = run(model, x)
    assert torch.equal(back, eager) and not rows


TRAINED = [
    "torchvision BasicBlock", "torchvision RegNet", "timm resnet-d", "timm SE", "timm ConvNormAct",
    "somebody's block, out + shortcut",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_training(name):
    """Two steps of SGD, the second after a conversion in between: the optimizer never notices."""
    build, *_ = NETS[name]
    model, x = lively(build).train(), torch.randn(3, 3, 40, 64)
    models = [model, copy.deepcopy(model), copy.deepcopy(model).double()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    for step in range(2):
        for m, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            m(x.to(next(m.parameters()).dtype)).square().mean().backward()
            optimizer.step()
        if step == 0:
            convert(model)
            with dispatch.record() as rows:
                copy.deepcopy(model)(x)
            assert {op for op, _, _ in rows} >= {"bn_stats", "bn_relu"}
    for (key, ours), eager, exact in zip(
        model.state_dict().items(), *(m.state_dict().values() for m in models[1:]), strict=True
    ):
        if ours.dtype != torch.int64:
            off, eager_off = ((t.double() - exact).norm() / exact.norm().clamp_min(1e-9) for t in (ours, eager))
            assert off <= 2 * eager_off + 2e-5, f"{key}: {off:.1e} beside eager's {eager_off:.1e}"
        else:
            assert ours == eager


def test_torch_save_keeps_the_conversion():
    model, x = convert(lively(tv_net)), torch.randn(X)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert is_converted(loaded.layer1[0]) and torch.equal(run(loaded, x)[0], run(model, x)[0])
    assert unconvert(loaded) is loaded and type(loaded.layer1[0]) is tv_resnet.BasicBlock


def test_converting_twice_or_ours_changes_nothing():
    model = convert(tv_net())
    classes = [type(m) for m in model.modules()]
    assert [type(m) for m in convert(model).modules()] == classes
    ours = resnet_fused.resnet18()
    assert convert(ours, strict=True) is ours and not any(map(is_converted, ours.modules()))


def test_torchvisions_blocks_get_the_forward_of_ours():
    """So that whatever makes ours faster makes theirs faster."""
    model = convert(tv_net(), strict=True)
    assert type(model)._ours is resnet_fused.ResNet
    assert type(model.layer1[0]).forward is type(model.layer2[0]).forward is resnet_fused.BasicBlock.forward
    assert type(convert(tv_net("Bottleneck")).layer2[0]).forward is resnet_fused.Bottleneck.forward


@pytest.mark.parametrize("block", IMPOSTORS, ids=lambda b: b.__name__)
def test_what_a_forward_does_counts_and_not_its_parts(block):
    model = nn.Sequential(block()).eval()
    with pytest.raises(RuntimeError, match=f"0 \\({block.__name__}\\): its forward .*{IMPOSTORS[block]}"):
        convert(model, strict=True)
    before = torch.get_rng_state(), objects(model)
    assert not is_converted(convert(model)[0])
    assert torch.equal(torch.get_rng_state(), before[0]) and objects(model) == before[1]


@pytest.mark.parametrize(("block", "sites"), [(BasicBlock, 3), (Bystander, 0), (LateWriter, 2), (ConvTwice, 1)])
def test_only_what_has_no_witness_is_fused(block, sites):
    """Fused around what others see: a buffer, an intermediate that is used twice, an input that is written to."""
    model, x = lively(block), torch.randn(2, 8, 9, 9)
    inputs = [x.clone() for _ in range(3)]
    eager, exact = run(model, inputs[0])[0], run(copy.deepcopy(model).double(), inputs[1].double())[0]
    out, rows = run(convert(model), inputs[2])
    assert_within_budget(out, eager, exact, "output")
    assert fused_sites(rows) == sites
    assert torch.equal(inputs[2], inputs[0]), "what eager writes to is written to"


def test_strict_changes_nothing_before_it_fails():
    model = nn.Sequential(Plain(), StochasticDepth())
    with pytest.raises(RuntimeError, match=r"convert: 1 modules cannot be fused: 1 \(StochasticDepth\)"):
        convert(model, strict=True)
    assert type(model[0]) is Plain
    with pytest.raises(TypeError, match=r"convert: model should be an nn\.Module, got OrderedDict"):
        convert(model.state_dict())


def test_dtypes_of_a_sum_that_is_not_in_place():
    """bfloat16 + float32 is float32 in `a + b` and bfloat16 in `a += b`."""
    for block in (OutOfPlace, Plain, BasicBlock):
        model, h = lively(block), torch.randn(2, 8, 9, 9)
        with torch.autocast("cpu", torch.bfloat16):
            eager = run(model, h)[0]
            out, rows = run(convert(model), h)
        assert out.dtype == eager.dtype == (torch.bfloat16 if block is Plain else torch.float32) and rows
        torch.testing.assert_close(out, eager, rtol=0.05, atol=0.05)


def test_frozen_batch_norm_changes_the_dtype_of_half_activations():
    model, x = lively(lambda: tv_net(norm_layer=FrozenBatchNorm2d)), torch.randn(X)
    with torch.autocast("cpu", torch.bfloat16):
        eager = run(model, x)[0]
        out, rows = run(convert(model), x)
    assert torch.equal(out, eager) and not rows
    assert "changes the dtype" in model.layer1[0].why_not_fused(torch.randn(1, 64, 8, 8).bfloat16())


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_batch_norm_with_any_eps(eps):
    """torchvision's detectors set eps = 0 in theirs."""
    model, x = lively(lambda: tv_net(norm_layer=lambda c: FrozenBatchNorm2d(c, eps=eps))), torch.randn(X)
    eager, exact = run(model, x)[0], copy.deepcopy(model).double()
    out, rows = run(convert(model), x)
    assert fused_sites(rows) == 12
    assert_within_budget(out, eager, run(exact, x.double())[0], "logits", channel_dim=None)
    for m, t in ((model, x), (exact, x.double())):
        m(t).square().sum().backward()
    a, b = (m.layer2[0].conv1.weight.grad for m in (model, exact))
    assert (a - b).norm() <= 1e-4 * b.norm()


def test_backbones():
    """Inside feature pyramids, segmentation, detection, and timm's feature lists."""
    x = torch.randn(1, 3, 64, 64)
    backbone = tv.detection.backbone_utils.resnet_fpn_backbone
    fpn = lively(lambda: backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d))
    features = lively(lambda: timm.create_model("resnet18", features_only=True, out_indices=(0, 2, 4)))
    fcn = lively(lambda: tv.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3))
    for model in (fpn.body, fpn, features, fcn):
        eager, _ = run(model, x)
        out, rows = run(convert(model), x)
        assert type(out) is type(eager) and len(rows) >= 40 and list(candidates(model)) == []
        for a, b in zip(*((o.values() if isinstance(o, dict) else o) for o in (out, eager)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_feature_extractors():
    """The graph of a converted model has torchvision's names; with the blocks as leaves it is fused too."""
    extraction = tv.feature_extraction
    model, x = lively(tv_net), torch.randn(X)
    names = extraction.get_graph_node_names(model)
    expected = run(extraction.create_feature_extractor(model, ["layer2.0.relu_1"]), x)[0]
    convert(model)
    assert extraction.get_graph_node_names(model) == names
    plain = extraction.create_feature_extractor(model, ["layer2.0.relu_1"])
    out, rows = run(plain, x)
    assert torch.equal(out["layer2.0.relu_1"], expected["layer2.0.relu_1"]) and not rows
    leaves = {"leaf_modules": [tv_resnet.BasicBlock]}
    out, rows = run(extraction.create_feature_extractor(model, ["layer2"], tracer_kwargs=leaves), x)
    assert fused_sites(rows) == 5
    torch.testing.assert_close(out["layer2"], expected["layer2.0.relu_1"], rtol=1e-4, atol=1e-4)


def test_graph_modules():
    """A feature extractor that exists already, with its two graphs, and what torch.fx makes of a block."""
    model, x = lively(tv_net), torch.randn(X)
    extractor = tv.feature_extraction.create_feature_extractor(model, {"layer2.0.relu_1": "features", "fc": "logits"})
    nodes = [n.name for n in extractor.graph.nodes]
    expected, _ = run(extractor, x)
    convert(extractor, strict=True)
    for m in (extractor, copy.deepcopy(extractor), pickle.loads(pickle.dumps(convert(torch.fx.symbolic_trace(model))))):
        out, rows = run(m.eval(), x)  # torchvision's copies come back in training mode
        assert fused_sites(rows) == 12 and is_converted(m)
        out = out if isinstance(out, dict) else {"logits": out}
        for name, value in out.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    extractor.train()  # another graph, its code written anew
    with dispatch.record() as rows:
        extractor(x)["logits"].sum().backward()
    assert sum(op == "bn_stats" for op, _, _ in rows) == 12
    assert fused_sites(run(extractor.eval(), x)[1]) == 12
    extractor.get_submodule("layer1.0.conv1").register_forward_hook(lambda *args: None)
    assert extractor.why_not_fused(x) == "layer1.0.conv1 carries a hook" and not run(extractor, x)[1]
    unconvert(extractor)
    assert not is_converted(extractor) and [n.name for n in extractor.graph.nodes] == nodes


def test_a_graph_that_is_edited():
    graph, h = convert(torch.fx.symbolic_trace(lively(Plain))), torch.randn(2, 8, 9, 9)
    expected, rows = run(graph, h)
    assert fused_sites(rows) == 2
    last = next(n for n in reversed(graph.graph.nodes) if n.op == "call_function")
    last.target, last.kwargs = torch.flatten, {}
    graph.recompile()
    out, rows = run(graph, h)
    assert fused_sites(rows) == 2 and not torch.equal(out, expected)
    torch.testing.assert_close(out, run(unconvert(graph), h)[0], rtol=1e-4, atol=1e-5)


class InADict(Plain):
    def forward(self, batch):
        return super().forward(batch["image"])


def test_a_graph_with_a_signature_of_its_own():
    graph = torch.fx.symbolic_trace(InADict(), concrete_args={"batch": {"image": torch.fx.PH}})
    with pytest.raises(RuntimeError, match="has arguments or results in a form of its own"):
        convert(graph, strict=True)


def test_explain_has_a_row_for_every_block():
    model, x = lively(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), StochasticDepth(), Plain())), torch.randn(X)
    model[2].first = nn.Conv2d(8, 8, 3, padding=1)
    rows = {row["name"]: row for row in explain(model, x).rows}
    assert rows["1"]["reason"].startswith("not converted: its forward calls rand on something else")
    assert rows["2"]["reason"] == "not converted: convert() would fuse it"
    rows = {row["name"]: row for row in explain(convert(model), x).rows}
    assert rows["2.first"]["reason"] == "has a bias" and rows["2.first"]["backend"] == "modules"
    assert {"2.norm_a+relu", "2.second+norm_b+add+relu"} <= set(rows)
    model[2].second.register_forward_hook(lambda *a: None)
    assert {row["name"]: row for row in explain(model, x).rows}["2"]["reason"] == "second carries a hook"


def test_the_random_numbers_of_the_caller_stay():
    """Also at the first conversion of a process, which builds blocks of this package to compare with."""
    classes._known.cache_clear()
    model, before = tv_net(), torch.get_rng_state()
    resnet_fused.convert(model)
    assert torch.equal(torch.get_rng_state(), before)
