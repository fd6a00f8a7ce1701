"""tests/support/eager.py: where torch's own convolution is garbage, a right kernel passes and a wrong one does not."""

import pytest
import torch
import torch.nn.functional as F
from eager import sound

from resnet_fused.measure.accuracy import budget_used, exact

GARBAGE = {
    "huge": lambda y: y * 1e4,
    "infinite": lambda y: y * torch.inf,
    "nan": lambda y: y * torch.nan,
    "another-answer": lambda y: y.flip(1),
}


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def problem(request):
    """x and weight whose output is one column wide and several rows high, at stride 2."""
    torch.manual_seed(0)
    return torch.randn(2, 16, 40, 2).to(request.param), torch.randn(32, 16, 3, 3).div(12).to(request.param)


def convolve(x, weight):
    return F.conv2d(x, weight, stride=2, padding=1)


def rounded(x, weight):
    return convolve(x.float(), weight.float()).to(x.dtype)


def share(ours, eager, x, weight):
    oracle = convolve(exact(x), exact(weight))
    return budget_used(ours, sound(eager, oracle, lambda: convolve(x.float(), weight.float())), oracle)


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_no_yardstick(problem, kind):
    x, weight = problem
    right = rounded(x, weight)
    eager = GARBAGE[kind](right)
    assert share(right, eager, x, weight) <= 1
    wrong = right.clone()
    wrong[:, 3] *= 1.02
    assert share(wrong, eager, x, weight) > 1


def test_huge_values_would_let_anything_pass(problem):
    x, weight = problem
    assert (
        budget_used(rounded(x, weight) * 2, GARBAGE["huge"](rounded(x, weight)), convolve(exact(x), exact(weight))) < 1
    )


def test_an_eager_that_is_right_is_left_alone(problem):
    x, weight = problem

    def never():
        raise AssertionError("computed again")

    eager = rounded(x, weight)
    assert sound(eager, convolve(exact(x), exact(weight)), never) is eager
    single = convolve(x.float(), weight.float()) * 2  # float32 is what the budget of halves is computed in
    assert sound(single, convolve(exact(x), exact(weight)), never) is single


def test_values_that_are_infinite_in_the_oracle_do_not_count(problem):
    x, weight = problem
    x[0, 0, 4, 1] = torch.inf
    eager = rounded(x, weight)
    assert sound(eager, convolve(exact(x), exact(weight)), lambda: None) is eager
