"""Depthwise convolutions on vectors (csrc/cpu/depthwise/), against float64 beside torch's own error."""

import isa
import pytest
import torch
import torch.nn.functional as F
from amx_cases import DTYPE_IDS, DTYPES, between_sentinels, sentinels_intact

from resnet_fused.frozen.cpu.pointwise import POINTWISE
from resnet_fused.frozen.function import UNARY
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
# n, c, h, w, kernel, stride, padding
CASES = {
    "one-channel": (2, 1, 5, 6, 3, 1, 1),
    "one-pixel": (3, 17, 1, 1, 5, 1, 2),
    "a-vector": (1, 16, 12, 12, 3, 1, 1),
    "a-ragged-vector": (2, 37, 9, 23, 3, 2, 1),
    "5x5": (2, 40, 14, 14, 5, 1, 2),
    "5x5-stride-2": (1, 24, 15, 29, 5, 2, 2),
    "no-padding": (1, 33, 11, 12, 5, 1, 0),
    "wide-padding": (1, 8, 4, 3, 3, 1, 4),
    "asymmetric-rows": (1, 20, 40, 3, 5, 2, 1),
}
FUNCTIONS = {"relu": torch.relu} | {name: unary.function for name, unary in UNARY.items()}


def problem(case, dtype, seed=0):
    n, c, h, w, kernel, _, _ = case
    torch.manual_seed(seed)
    x = between_sentinels((n, c, h, w), dtype).copy_(3 * torch.randn(n, c, h, w))
    return x, torch.randn(c, 1, kernel, kernel).to(dtype), torch.randn(c)


def run(x, weight, shift, stride, padding, function=None):
    sizes = ((s + 2 * padding - weight.shape[2]) // stride + 1 for s in x.shape[2:])
    out = between_sentinels((*x.shape[:2], *sizes), x.dtype)
    packed = weight.float()[:, 0].permute(1, 2, 0).contiguous()
    number = POINTWISE.index(function)
    library.namespace().depthwise_conv(x, packed, shift, out, stride, padding, number)
    assert sentinels_intact(out)
    return out


def by_torch(x, weight, shift, stride, padding, function=None):
    y = F.conv2d(x, weight.to(x.dtype), shift.to(x.dtype), stride, padding, 1, x.shape[1])
    return y if function is None else FUNCTIONS[function](y)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_float64(case, dtype):
    x, weight, shift = problem(case, dtype)
    ours, eager, oracle = (
        run(x, weight, shift, *case[5:]),
        *(by_torch(t, weight, shift, *case[5:]) for t in (x, x.double())),
    )
    assert_within_budget(ours, eager, oracle, "depthwise")


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("function", POINTWISE[1:])
def test_what_follows(function, dtype):
    x, weight, shift = problem((1, 19, 13, 17, 3, 1, 1), dtype)
    arguments = weight, shift, 1, 1, function
    assert_within_budget(run(x, *arguments), by_torch(x, *arguments), by_torch(x.double(), *arguments), function)


@pytest.mark.parametrize("function", POINTWISE)
def test_large_values_infinities_and_nan_are_as_torch_has_them(function):
    """A filter that copies its middle, so that torch's own function sees the same values."""
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 90.0, -90.0, 89.0, -87.5, -3.0, 3.0, 6.0])
    x = values.view(1, 1, 1, -1).repeat(1, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(16, 1, 3, 3)
    weight[:, :, 1, 1] = 1.0
    alone = torch.cat([run(x[..., i : i + 1].contiguous(memory_format=torch.channels_last), weight, torch.zeros(16), 1, 1,
                           function) for i in range(len(values))], 3)  # fmt: skip
    theirs = x if function is None else FUNCTIONS[function](x)
    torch.testing.assert_close(alone, theirs, atol=1e-30, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_same_bits_for_every_thread_count_and_batch(dtype, threads):
    case = (3, 48, 28, 30, 3, 1, 1)
    x, weight, shift = problem(case, dtype)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(run(x, weight, shift, 1, 1, "silu"))
    assert all(torch.equal(result, results[0]) for result in results)
    last = between_sentinels((1, *x.shape[1:]), dtype).copy_(x[-1:])
    assert torch.equal(run(last, weight, shift, 1, 1, "silu"), results[0][-1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"stride": 3}, "kernel must be 3 or 5 and stride 1 or 2, got 3 and 3", id="stride"),
        pytest.param({"function": 7}, "activation is 7, but the kernel has 0 to 6", id="function"),
        pytest.param({"shift": torch.zeros(3)}, "shift must be contiguous float32 of 8 values", id="shift"),
        pytest.param({"weight": torch.zeros(3, 3, 9)}, "weight must be contiguous float32", id="weight"),
        pytest.param({"out": torch.zeros(1, 8, 5, 5).contiguous(memory_format=torch.channels_last)}, "out has shape", id="out"),
        pytest.param({"x": torch.zeros(1, 8, 6, 6)}, "must be dense channels_last", id="layout"),
        pytest.param({"padding": -1}, "no output pixel", id="padding"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    x = torch.zeros(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    given = {"x": x, "weight": torch.zeros(3, 3, 8), "shift": torch.zeros(8), "out": torch.full_like(x, 7.0)}
    given |= {"stride": 1, "padding": 1, "function": 0} | change
    with pytest.raises(RuntimeError, match=message):
        library.namespace().depthwise_conv(*given.values())
    assert (given["out"] == 7).all() or "out" in change


def test_batch_of_none():
    assert run(torch.empty(0, 8, 6, 6), torch.zeros(8, 1, 3, 3), torch.zeros(8), 1, 1).shape == (0, 8, 6, 6)


@isa.outermost
@pytest.mark.parametrize("lower", isa.SETS[:-1])
def test_lower_instruction_sets(lower):
    isa.run_again(lower, __file__, OMP_NUM_THREADS="1")
