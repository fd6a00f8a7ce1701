"""torch.compile, torch.export, torch.jit.trace, torch.fx and ONNX, of our networks, converted ones and frozen ones."""

import copy
import importlib.util
import io

import pytest
import torch
from foreign import fused_and_eager, tv
from torch import nn

import resnet_fused
from resnet_fused.measure.oracle import with_lively_norms

X = (2, 3, 32, 32)
HOLDERS = pytest.mark.parametrize("holder", ["ours", "timm"])
OURS = "resnet_fused"


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counting(graphs):
    """A backend of torch.compile that keeps the graphs it is given."""

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    return backend


def functions(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])
def test_one_dynamic_graph_for_every_batch(holder):
    """Batch 2, then 3: the second graph has a symbolic batch and serves all others."""
    model, reference = fused_and_eager(holder)
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=counting(graphs))
    with torch.no_grad():
        for batch in (2, 3, 4, 7, 11):
            x = torch.randn(batch, *X[1:])
            torch.testing.assert_close(compiled(x), reference(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) <= 2 and any(OURS in f for f in functions(graphs[-1].graph))


@HOLDERS
def test_a_training_loop_compiles_once(holder):
    """Counters, running statistics and weights change at every step and are no reason to compile again."""
    model, reference = fused_and_eager(holder)
    graphs = []
    compiled = torch.compile(model.train(), fullgraph=True, backend=counting(graphs))
    for m, call in ((model, compiled), (reference.train(), reference)):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            call(torch.randn(4, *X[1:], generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
    assert len(graphs) == 1 and model.bn1.num_batches_tracked == 4
    for (name, p), q in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-4, msg=name)
    compiled.eval()(torch.randn(X)), compiled.train()(torch.randn(X)), compiled.eval()(torch.randn(X))
    assert len(graphs) <= 4, "two modes, two batches"


@HOLDERS
def test_hooks_under_compile(holder):
    """A block with a hook is compiled by its modules, and the hook still fires."""
    model, reference = fused_and_eager(holder)
    seen = []
    model.layer1[0].conv2.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    x = torch.randn(X)
    with torch.no_grad():
        out = torch.compile(model, backend=counting([]))(x)
        torch.testing.assert_close(out, reference(x), rtol=1e-4, atol=1e-4)
    assert seen == [(2, 64, 8, 8)]


@HOLDERS
def test_export_with_a_dynamic_batch(holder):
    model, reference = fused_and_eager(holder)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(X),), dynamic_shapes=shapes)
    assert any(OURS in f for f in functions(program.graph))
    assert set(program.state_dict) == set(model.state_dict())
    plain = program.run_decompositions(resnet_fused.decompositions())
    assert not any(OURS in f for f in functions(plain.graph))
    x = torch.randn(5, *X[1:])
    for p in (program, plain):
        torch.testing.assert_close(p.module()(x), reference(x), rtol=1e-4, atol=1e-4)


def test_decompositions_of_every_op_in_evaluation():
    class AllOps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = resnet_fused.nn.ConvBNReLU(3, 8, 3, stride=2), resnet_fused.nn.BNReLU(8, relu=False)
            self.add = resnet_fused.nn.AddReLU()

        def forward(self, x):
            out = self.conv(x)
            return self.add(self.norm(out), out)

    model, x = with_lively_norms(AllOps()).eval(), torch.randn(X)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    assert len({f for f in functions(program.graph) if OURS in f}) == 3
    plain = program.run_decompositions(resnet_fused.decompositions())
    assert not any(OURS in f for f in functions(plain.graph))
    torch.testing.assert_close(plain.module()(x), model(x), rtol=1e-5, atol=1e-5)
    batch_stats = torch.ops.resnet_fused.bn_relu.default
    t, invstd = torch.randn(2, 8, 4, 4), torch.rand(8) + 0.5
    arguments = (t, torch.randn(8), invstd, torch.randn(8), None, t, 1e-5, True, True)
    torch.testing.assert_close(resnet_fused.decompositions()[batch_stats](*arguments), batch_stats(*arguments))


@HOLDERS
def test_jit_trace_freezes_and_saves(holder):
    model, reference = fused_and_eager(holder)
    x, buffer = torch.randn(X), io.BytesIO()
    traced = torch.jit.trace(model, torch.randn(X))
    assert f"{OURS}::" not in str(traced.inlined_graph)
    torch.jit.save(torch.jit.freeze(traced), buffer)
    buffer.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(buffer)(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_fx_has_torchvisions_node_names(name):
    names = tv.feature_extraction.get_graph_node_names
    theirs = getattr(tv, name)()
    expected = names(theirs)
    assert names(getattr(resnet_fused, name)()) == expected == names(resnet_fused.convert(theirs))
    assert name != "resnet34" or len(expected[0]) == 126


@HOLDERS
def test_fx_symbolic_trace(holder):
    model, reference = fused_and_eager(holder)
    graph, x = torch.fx.symbolic_trace(model), torch.randn(X)
    assert [n.name for n in graph.graph.nodes] == [n.name for n in torch.fx.symbolic_trace(reference).graph.nodes]
    assert torch.equal(graph(x), reference(x))


def test_a_frozen_network_as_a_module():
    for shortcut, block in (("projection", resnet_fused.Bottleneck), ("zero_pad", resnet_fused.BasicBlock)):
        model = with_lively_norms(resnet_fused.ResNet(block, [1, 1, 1, 1], num_classes=5, shortcut=shortcut)).eval()
        x = torch.randn(X)
        engine = resnet_fused.freeze(model, x, exact=True)
        module = engine.module()
        torch.testing.assert_close(module(x), engine(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
        model.conv1.weight.data.zero_()
        torch.testing.assert_close(module(x), engine(x), rtol=1e-4, atol=1e-5)
        program = torch.export.export(module, (x,))
        assert not any(OURS in f or "batch_norm" in f or "mkldnn" in f for f in functions(program.graph))
        torch.testing.assert_close(program.module()(x), engine(x), rtol=1e-4, atol=1e-5)
    bf16 = resnet_fused.freeze(copy.deepcopy(model), x, dtype=torch.bfloat16).module()
    assert bf16(x.bfloat16()).dtype == torch.bfloat16


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("onnx", "onnxruntime", "onnxscript")),
    reason="onnx, onnxruntime or onnxscript is not installed: pip install onnx onnxruntime onnxscript",
)


@needs_onnx
@pytest.mark.parametrize("source", ["ours", "timm", "legacy exporter", "exported program", "frozen"])
def test_onnx_in_onnx_runtime(source, tmp_path):
    """Standard operators only, and the numbers of eager."""
    import onnx
    import onnxruntime

    model, reference = fused_and_eager(source if source == "timm" else "ours")
    path, x = tmp_path / "model.onnx", torch.randn(X)
    if source == "frozen":
        full = with_lively_norms(resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5)).eval()
        model, reference = resnet_fused.freeze(full, x).module(), full
    elif source == "exported program":
        with torch.no_grad():
            model = torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions())
    with torch.no_grad():
        torch.onnx.export(model, (x,), path, dynamo=source != "legacy exporter", verbose=False)
    loaded = onnx.load(path)
    assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), reference(x), rtol=1e-4, atol=1e-4)
