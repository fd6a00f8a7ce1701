"""tests/support/eager.py: where torch's own convolution is garbage, a right kernel passes and a wrong one does not."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from eager import HALVES, eager_of
from one_call_cases import network
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_fused.measure.accuracy import budget_used, exact
from resnet_fused.measure.oracle import by_modules

SPOILT = {
    "huge": lambda y: y * 1e4,
    "infinite": lambda y: y * torch.inf,
    "nan": lambda y: y * torch.nan,
    "another-answer": lambda y: y.flip(1),
}


class Garbage(TorchDispatchMode):
    """A machine on which convolutions of 16-bit types give what `spoil` makes of the right answer."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        spoilt = func is torch.ops.aten.convolution.default and out.dtype in HALVES
        return self.spoil(out) if spoilt else out


@pytest.fixture(params=HALVES, ids=["fp16", "bf16"])
def problem(request):
    """x and weight whose output is one column wide and several rows high, at stride 2."""
    torch.manual_seed(0)
    return torch.randn(2, 16, 40, 2).to(request.param), torch.randn(32, 16, 3, 3).div(12).to(request.param)


def convolve(x, weight):
    return F.conv2d(x, weight, stride=2, padding=1)


@pytest.mark.parametrize("kind", SPOILT)
def test_garbage_is_no_yardstick(problem, kind):
    right = convolve(*(t.float() for t in problem)).to(problem[0].dtype)
    wrong, oracle = right.clone(), convolve(*map(exact, problem))
    wrong[:, 3] *= 1.02
    with Garbage(SPOILT[kind]):
        eager = eager_of(lambda: convolve(*problem), oracle)
    assert budget_used(right, eager, oracle) <= 1 < budget_used(wrong, eager, oracle)


def test_a_huge_eager_would_let_anything_pass(problem):
    """Which is why there is an `eager_of`."""
    right, oracle = convolve(*problem), convolve(*map(exact, problem))
    assert budget_used(right * 2, SPOILT["huge"](right), oracle) < 1


def test_an_eager_that_is_right_is_computed_once(problem):
    calls = []

    def function():
        calls.append(convolve(*problem))
        return calls[-1]

    x, _ = problem
    x[0, 0, 4, 1] = torch.inf  # as infinite in the oracle
    assert eager_of(function, convolve(*map(exact, problem))) is calls[0] and len(calls) == 1


def test_float32_is_left_alone():
    single = torch.ones(2, 3)
    assert eager_of(lambda: single, torch.zeros(2, 3, dtype=torch.float64)) is single


def test_a_whole_network():
    model, x = network(), torch.randn(2, 3, 33, 9)
    low = functools.partial(by_modules(model).bfloat16(), x.bfloat16())
    with torch.no_grad():
        oracle, eager = copy.deepcopy(model).double()(x.double()), low()
        with Garbage(SPOILT["huge"]):
            again = eager_of(low, oracle)
    assert budget_used(again, eager, oracle, channel_dim=None) <= 1
