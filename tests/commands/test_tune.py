"""tune: the calls a model really makes, measured and gated; and which calls those are."""

import pytest
import torch
from command_line import check_error, run
from resnets import narrow

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.commands.tune import calls, tune
from resnet_fused.dispatch.choice import GRADIENTS
from resnet_fused.measure import remembered

SHAPE = (2, 3, 48, 48)
ENOUGH = 3600.0  # seconds: a busy machine measures everything too
TRAINING = {"bn_stats", "bn_relu", "bn_relu_backward", "conv_stats", "bn_add_bn_relu"}
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(tune, "PER_CALL", 0.0)


def test_the_calls_of_a_model_are_those_it_makes():
    """Fake tensors tell the same calls as a real pass, and leave the model alone."""
    model = narrow().train()
    model.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluation = calls.calls(model, SHAPE, torch.float32)
    training = calls.calls(model, SHAPE, torch.float32, train=True)
    assert model.training and not model.layer1.training and model.layer2.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    recorder = calls._Recorder()
    with torch.no_grad(), recorder:
        model.eval()(torch.randn(SHAPE))
    assert evaluation == dict(recorder.calls) and sum(evaluation.values()) == 12
    assert {call.op for call in evaluation} == {"conv_bn_relu", "conv_bn_relu_pool"}
    assert {call.op for call in training} == TRAINING
    convolutions = sum(n for call, n in training.items() if call.op == "conv_stats")
    assert convolutions == sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    half = calls.calls(model, SHAPE, torch.float16)
    assert {call["x"].dtype for call in half} == {torch.float16}


@pytest.mark.parametrize("train", [pytest.param(False, id="evaluation"), pytest.param(True, id="training")])
def test_tensors_of_a_call_fit_the_op(train):
    for call in calls.calls(narrow(), SHAPE, torch.float32, train):
        arguments = calls.tensors(call, "cpu")
        with dispatch.strict(False):
            out = call.function()(*arguments)
        first = out[0] if isinstance(out, tuple) else out
        assert first.isfinite().all() and tuple(first.shape) == calls.out_shape(call)
        tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]
        assert not any((t == 0).all() for t in tensors)


def test_tune_fills_the_table_that_the_dispatcher_reads():
    model = narrow().eval()
    steps = []
    rows, left_out = tune.tune(model, SHAPE, torch.float32, seconds=ENOUGH, step=steps.append)
    assert left_out == 0 and len(rows) == len(steps) == len(calls.calls(model, SHAPE, torch.float32))
    reasons = {
        row["reason"]
        for row in resnet_fused.explain(model, torch.randn(SHAPE)).rows
        # Without its pool the stem's convolution was not measured: it runs so where "torch" was the fastest for both.
        if row["op"] == "conv_bn_relu" and not row["shape"].startswith("2x3x")
    }
    assert reasons and all(reason.startswith("measured: ") for reason in reasons)
    again = []
    tune.tune(model, SHAPE, torch.float32, seconds=ENOUGH, step=again.append)
    assert again == [], "known already"
    rows, _ = tune.tune(model, SHAPE, torch.float32, train=True, seconds=ENOUGH)
    assert {row["op"] for row in rows} == TRAINING
    model.train()
    with dispatch.record() as noted:
        model(torch.randn(SHAPE)).sum().backward()
    # The stem, which keeps no output to take its mask from, makes other backward passes.
    passes = [(op, choice) for op, (shape, *_), choice in noted if shape != (2, 64, 24, 24)]
    assert {"conv_stats", "bn_add_bn_relu"} < {op for op, _ in passes}
    # A rule by shape chooses who computes the gradients of a convolution on a CPU.
    tuned = [choice for op, choice in passes if op not in GRADIENTS]
    assert all(choice.reason.startswith("measured") for choice in tuned), "every pass has its entry"


def test_no_time_means_defaults_and_is_said():
    rows, left_out = tune.tune(narrow().eval(), SHAPE, torch.float32, seconds=0.0)
    assert rows == [] and left_out == len(calls.calls(narrow().eval(), SHAPE, torch.float32))
    assert "no time for" in tune.text(rows, left_out)
    assert remembered.table(torch.device("cpu")).entries == {}


def test_what_is_wrong_is_never_chosen_however_fast(monkeypatch):
    """A kernel that returns at once and leaves its output alone."""
    model = narrow().eval().to(memory_format=torch.channels_last)
    call = next(c for c in calls.calls(model, SHAPE, torch.float32) if dict(c.arguments).get("residual") is not None)

    def zero(x, weight, epilogue, out, convolution):
        out.zero_()

    lazy = dispatch.Backend("lazy", "cpu", lambda device: None, {"conv_bn_relu": zero})
    monkeypatch.setitem(dispatch.BACKENDS, "lazy", lazy)
    x = calls.tensors(call, "cpu")
    assert "lazy" in tune.options(call, torch.device("cpu"))
    entry = tune.measure(call, x, torch.device("cpu"), 0.1)
    assert "lazy" not in entry.seconds and entry.choice in ("native", "torch", "eager")


def test_a_backend_that_fails_is_left_out(monkeypatch):
    class OutOfResources(Exception):
        """As Triton's: no RuntimeError."""

    def refuses(*args, **kwargs):
        raise OutOfResources("out of shared memory")

    call = next(iter(calls.calls(narrow().eval(), SHAPE, torch.float32)))
    kernels = dict.fromkeys(dispatch.BACKENDS["eager"].kernels, refuses)
    monkeypatch.setitem(dispatch.BACKENDS, "refuses", dispatch.Backend("refuses", "cpu", lambda device: None, kernels))
    assert "refuses" in tune.options(call, torch.device("cpu"))
    entry = tune.measure(call, calls.tensors(call, "cpu"), torch.device("cpu"), 0.1)
    assert "refuses" not in entry.seconds


def test_command_line(capsys):
    line = "tune resnet18 1x3x32x32 --seconds 0.5"
    status, out, _ = run(capsys, *line.split())
    assert status == 0 and "runner-up" in out and "conv_bn_relu" in out
    status, out, _ = run(capsys, *["tune", "resnet18", "1x3x32x32", "--frozen"])
    assert status == 0 and "layer4.1.conv2" in out


@pytest.mark.parametrize(("line", "message"), [
    ("tune", "required"),
    ("tune resnet18 8x3x224", "should be such as 8x3x224x224, not 8x3x224"),
    ("tune resnet18 8x4x224x224", "needs a batch, 3 channels"),
    ("tune resnet18 8x3x224x224 --train --frozen", "exclude each other"),
    ("tune resnet18 1x3x32x32 --train", "more than one value per channel"),
    ("tune resnet18 8x3x224x224 --frozen --dtype float16", "dtype should be"),
])  # fmt: skip
def test_wrong_arguments(capsys, line, message):
    check_error(run(capsys, *line.split()), message)


def test_the_oracle_of_the_gate_is_really_float64():
    """Private ops that were computed in float32 whatever they got would make eager exact and everything else wrong."""
    for call in calls.calls(narrow(), SHAPE, torch.float32, train=True):
        gate = tune._Gate(call, calls.tensors(call, "cpu"))
        results = zip(gate.eager, gate.oracle, strict=True)
        assert any((e.double() != o.double()).any() for e, o in results if e.numel() and e.dtype.is_floating_point)
