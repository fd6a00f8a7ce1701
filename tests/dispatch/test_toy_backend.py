"""A backend that is declared in this file alone runs wherever backends do: asked for, explained, measured, frozen, verified."""

import pytest
import torch
import torch.nn.functional as F
from resnets import narrow

import resnet_fused
from benchmarks.protocol import candidates, cases, gate
from resnet_fused import dispatch
from resnet_fused.commands.tune import calls, tune
from resnet_fused.frozen.gpu import measure
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.kernels.epilogue import activate
from resnet_fused.measure import remembered
from resnet_fused.reports.verify import ops as verified

CPU = torch.device("cpu")
SHAPE = (2, 3, 40, 40)


def conv_bn_relu(x, weight, epilogue, out, convolution, config=None):
    """In float64, by chunks of the batch."""
    norm, residual, activation = epilogue
    wide = [None if t is None else t.double() for t in (norm.mean, norm.var, norm.weight, norm.bias)]
    parts = (config or {"chunks": 1})["chunks"]
    z = torch.cat([F.conv2d(t.double(), weight.double(), None, *convolution.geometry) for t in x.chunk(parts)])
    y = F.batch_norm(z, *wide, eps=norm.eps)
    out.copy_(activate(y if residual is None else y + residual.double(), activation))


def refusal(op, convolution):
    return None if convolution.groups == 1 else f"the toy takes one group, not {convolution.groups}"


TOY = dispatch.Backend(
    "toy",
    "cpu",
    lambda device: None,
    {"conv_bn_relu": conv_bn_relu},
    refusal,
    configurations=lambda *_: [{"chunks": 2}],
)
WAYS = {"toy", "toy chunks=2"}


@pytest.fixture(autouse=True)
def _declared(own_cache, monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS, TOY.name, TOY)


def model():
    return narrow().eval().to(memory_format=torch.channels_last)


def test_it_is_listed_and_asked_for_by_name():
    assert resnet_fused.backends()["toy"] == "available"
    with resnet_fused.backend("toy"):
        report = resnet_fused.explain(model(), torch.randn(SHAPE))
    rows = [row for row in report.rows if row["op"] == "conv_bn_relu"]
    assert {row["backend"] for row in rows} == {"toy"} and {row["reason"] for row in rows} == {
        "backend 'toy' was asked for"
    }


def test_others_run_what_it_refuses_or_has_no_kernel_for():
    grouped = resnet_fused.nn.ConvBNReLU(8, 8, 3, groups=2).eval()
    with resnet_fused.backend("toy"), dispatch.record() as rows, torch.no_grad():
        grouped(torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last))
    assert (rows[0][0], rows[0][2].backend) == ("conv_bn_relu", "torch")
    assert rows[0][2].reason == "the toy takes one group, not 2"
    assert rows[1][0] == "bn_relu" and rows[1][2].backend != "toy"


def test_tune_measures_it_and_its_configurations():
    call = next(c for c in calls.calls(model(), SHAPE, torch.float32) if c.op == "conv_bn_relu")
    assert set(tune.options(call, CPU)) >= WAYS
    entry = tune.measure(call, calls.tensors(call, CPU), CPU, 0.0)
    assert "toy" in entry.seconds


def test_an_engine_is_built_of_it(monkeypatch):
    def compare(able, made, *_):
        seconds = {}
        for way in able:
            functions, share = made(way)
            functions[0]()
            assert share <= 1, f"{way.name}: {share:.2f} of the error budget"
            seconds[way] = 1.0 if way.name == "toy chunks=2" else 2.0
        return seconds

    monkeypatch.setattr(measure, "compare", compare)
    monkeypatch.setattr("resnet_fused.frozen.gpu.measure.beside_live", lambda engine, example: {})
    network, x = model(), torch.randn(SHAPE)
    with remembered.ignored():
        engine = freeze_gpu(network, x, graph=False, dtype=torch.float32)
    convolutions = [row for row in engine.rows if row["name"] != "avgpool+fc"]
    assert {row["backend"] for row in convolutions} == {"toy chunks=2"}
    with torch.no_grad():
        torch.testing.assert_close(engine(x), network(x), rtol=1e-4, atol=1e-4)


def test_verify_checks_it():
    checks = [
        (label, run) for label, run in verified.check_ops("cpu", torch.float32, True) if label["backend"] == "toy"
    ]
    assert {label["what"].split()[0] for label, _ in checks} == {"conv_bn_relu"}, "it has no other kernel"
    assert len(checks) == 2 * len(verified.CONVOLUTIONS)
    for label, run in checks:
        assert run()[2] <= 1, label


def test_benchmarks_time_it():
    case = cases.collect(model(), 2, 40, torch.float32, ("conv_bn_relu",), ("forward",))[0]
    a = case.arguments("cpu", 0)
    assert "toy" not in candidates.backends("cpu", "add_relu")
    kind, make = candidates.forward(case, "cpu", ("eager",))["toy"]
    itself, out = candidates.runs_itself("toy", make(a))
    assert kind == "ours" and itself and gate.Forward(case, a).share(out) <= 1
