"""verify() passes here, and does not pass with a broken kernel."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from resnet_fused import dispatch, verify
from resnet_fused.kernels import library
from resnet_fused.measure import accuracy
from resnet_fused.measure.accuracy import budget_used, gradient_budget_used
from resnet_fused.reports.verify import model as verify_model
from resnet_fused.reports.verify.verify import COLUMNS

needs_native = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


@pytest.fixture
def ops_only(monkeypatch):
    """Leaves the model out: its check has a test of its own."""
    module = importlib.import_module("resnet_fused.reports.verify.verify")  # the package has a function of that name
    monkeypatch.setattr(module, "check_model", lambda *args: ())


@pytest.fixture
def only_native(monkeypatch):
    for name in ("triton", "emulator"):  # on CPU tensors: slow, and tested elsewhere
        monkeypatch.delitem(dispatch.BACKENDS, name, raising=False)


def check(**kwargs):
    return verify("cpu", [torch.float32], quick=True, **kwargs)


def test_passes_and_leaves_the_random_numbers_alone(only_native, monkeypatch):
    state, said = torch.get_rng_state(), []
    report = check(progress=said.append)
    assert report.passed, str(report)
    assert torch.equal(state, torch.get_rng_state()) and len(said) == len(report.rows)
    assert all(row.keys() == COLUMNS.keys() for row in report.rows)
    assert {row["what"].split()[0] for row in report.rows} == {"add_relu", "bn_relu", "conv_bn_relu", "resnet34"}
    assert {row["what"] for row in report.rows} >= {"resnet34 eval", "resnet34 train step", "resnet34 frozen"}
    assert str(report).splitlines()[-1].startswith(f"passed: {len(report.rows)} checks")
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, str(report).splitlines())) <= 80


def breaks(monkeypatch, op, damage):
    """Puts a kernel of the native backend in place of `op` that calls `damage` on its arguments afterwards."""
    backend = dispatch.BACKENDS["native"]

    run = backend.kernels[op]

    def broken(*args):
        result = run(*args)
        damage(*args)
        return result

    monkeypatch.setitem(dispatch.BACKENDS, "native", backend._replace(kernels={**backend.kernels, op: broken}))


def negate(position):
    def damage(*args):
        if args[position] is not None:
            args[position].neg_()

    return damage


def scale_one_channel(position):
    def damage(*args):
        args[position].select(1, 3).mul_(1.001)

    return damage


# The position is that of an output among the kernel's arguments.
BROKEN = [
    pytest.param("add_relu", negate(2), id="add_relu-sign"),
    pytest.param("add_relu", scale_one_channel(2), id="add_relu-channel"),
    pytest.param("add_relu_backward", negate(2), id="add_relu_backward-sign"),
    pytest.param("bn_stats", negate(1), id="bn_stats-mean"),
    pytest.param("bn_stats", negate(3), id="bn_stats-running_mean"),
    pytest.param("bn_relu", negate(2), id="bn_relu-sign"),
    pytest.param("bn_relu", scale_one_channel(2), id="bn_relu-channel"),
    pytest.param("conv_bn_relu", negate(3), id="winograd-sign"),
    pytest.param("conv_bn_relu", scale_one_channel(3), id="winograd-channel"),
    pytest.param("bn_relu_backward_reduce", negate(4), id="reduce-sum_g"),
    pytest.param("bn_relu_backward_reduce", negate(5), id="reduce-sum_gx"),
    pytest.param("bn_relu_backward_apply", negate(6), id="apply-grad_x"),
    pytest.param("bn_relu_backward_apply", negate(7), id="apply-grad_residual"),
]


@needs_native
@pytest.mark.parametrize(("op", "damage"), BROKEN)
def test_a_broken_kernel_fails(monkeypatch, ops_only, only_native, op, damage):
    breaks(monkeypatch, op, damage)
    report = check()
    assert not report.passed
    failed = {row["backend"] for row in report.rows if row["verdict"] != "ok"}
    assert failed == {"native"} and "FAILED: " in str(report).splitlines()[-1]


@needs_native
def test_a_kernel_that_raises_fails(monkeypatch, ops_only, only_native):
    def damage(*args):
        raise RuntimeError("no such luck\nsecond line")

    breaks(monkeypatch, "add_relu", damage)
    failed = [row for row in check().rows if row["verdict"] != "ok"]
    assert {row["what"].split()[0] for row in failed} == {"add_relu"}
    assert all(row["verdict"] == "FAILED: RuntimeError: no such luck" for row in failed)


@needs_native
def test_the_model_check_sees_a_wrong_gradient(monkeypatch):
    """Of one layer among 36: the sums of a batch norm with 512 channels."""

    def damage(*args):
        if args[0].shape[1] == 512 and args[5] is not None:
            args[5].mul_(1.01)

    breaks(monkeypatch, "bn_relu_backward_reduce", damage)
    checks = list(verify_model.check_model("cpu", torch.float32, True))
    (compare,) = (c for label, c in checks if label["what"] == "resnet34 train step")
    assert compare()[2] > 1


@pytest.mark.parametrize(("device", "message"), [
    ("tpu", "device must be cpu or cuda, not 'tpu'"),
    pytest.param("cuda", "no CUDA device", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
])  # fmt: skip
def test_wrong_device(device, message):
    with pytest.raises(ValueError, match=message):
        verify(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_rule(dtype):
    """Rounding passes; one channel of 64 that is 2 % off, a NaN and an infinity do not."""
    exact = torch.randn(8, 64, 9, 9, dtype=torch.float64)
    rounded = exact.to(dtype)
    assert budget_used(rounded, rounded, exact) <= 1
    off, nan, infinite = rounded.clone(), rounded.clone(), rounded.clone()
    off[:, 5] *= 1.02
    nan[0, 0, 0, 0], infinite[0, 0, 0, 0] = float("nan"), float("inf")
    for wrong in (off, nan, infinite):
        assert not budget_used(wrong, rounded, exact) <= 1
    with pytest.raises(AssertionError, match="eager"):
        budget_used(rounded.double(), rounded, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rule_sees_values_that_are_truncated(monkeypatch, dtype):
    """Their errors are twice those of rounding, as a maximum and as the RMS, but all have one sign."""
    exact = torch.randn(8, 64, 40, 40, dtype=torch.float64).abs()
    rounded = exact.to(dtype)
    bits = rounded.view(torch.int16) - (rounded.double() > exact).to(torch.int16)  # of a positive value: the one below
    truncated = bits.view(dtype)
    assert not budget_used(truncated, rounded, exact) <= 1
    monkeypatch.setattr(accuracy, "SIGMAS", math.inf)
    assert budget_used(truncated, rounded, exact) <= 1, "the other two norms do not see it"


def test_the_rule_while_tf32_is_allowed():
    """Eager may have got a kernel without TF32: ours is right with TF32's rounding, and wrong with twice of it everywhere."""
    x, weight = torch.randn(2, 64, 14, 14), torch.randn(64, 64, 3, 3)

    def to_tf32(t, bits=13):
        as_int = t.view(torch.int32)
        return ((as_int + (1 << (bits - 1))) & -(1 << bits)).view(torch.float32)

    oracle = F.conv2d(x.double(), weight.double())
    eager = F.conv2d(x, weight)
    ours = F.conv2d(to_tf32(x), to_tf32(weight))
    assert budget_used(ours, eager, oracle, tf32=True) <= 1 < 50 < budget_used(ours, eager, oracle)
    coarse = F.conv2d(to_tf32(x, 15), to_tf32(weight, 15))  # two bits fewer
    assert budget_used(coarse, eager, oracle, tf32=True) > 1
    assert not accuracy.rounds_to_tf32(ours), "CPUs do not round to TF32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rule_sees_a_factor(monkeypatch, dtype):
    """Logits that are all a little too small: their errors have no mean, and are no larger than rounding may make them."""
    exact = torch.randn(4, 1000, dtype=torch.float64)
    rounded, smaller = exact.to(dtype), (exact * (1 - torch.finfo(dtype).eps / 2)).to(dtype)
    assert not budget_used(smaller, rounded, exact, channel_dim=None) <= 1
    monkeypatch.setattr(accuracy, "SIGMAS", math.inf)
    assert budget_used(smaller, rounded, exact, channel_dim=None) <= 1, "the other two norms do not see it"


def test_the_rule_for_gradients():
    exact = [torch.randn(n, dtype=torch.float64) for n in (5, 700, 64)]
    rounded = [g.float() for g in exact]
    assert gradient_budget_used(rounded, rounded, exact, exact) <= 1
    wrong = [rounded[0], rounded[1] * 1.001, rounded[2]]
    assert gradient_budget_used(wrong, rounded, exact, exact) > 1
    wrong = [rounded[0], rounded[1] * float("nan"), rounded[2]]
    assert gradient_budget_used(wrong, rounded, exact, exact) > 1
