"""Grouped convolutions on vectors (csrc/cpu/grouped/), against float64 beside torch's own error."""

import isa
import pytest
import torch
import torch.nn.functional as F
from amx_cases import DTYPE_IDS, DTYPES, between_sentinels, sentinels_intact
from torch import nn

from resnet_fused.frozen.cpu.grouped import Grouped, pack
from resnet_fused.frozen.cpu.pointwise import POINTWISE
from resnet_fused.frozen.function import UNARY
from resnet_fused.frozen.network import ConvBn
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
# n, channels, channels of a group, h, w, stride, padding
CASES = {
    "one-pixel": (3, 16, 4, 1, 1, 1, 1),
    "4": (1, 128, 4, 9, 28, 1, 1),
    "4-ragged": (2, 36, 4, 8, 15, 2, 1),
    "8": (2, 64, 8, 14, 14, 1, 1),
    "8-ragged": (1, 40, 8, 7, 33, 2, 1),
    "16": (2, 48, 16, 7, 7, 1, 1),
    "16-stride-2": (1, 32, 16, 56, 31, 2, 1),
    "18": (1, 36, 18, 6, 22, 1, 1),
    "24": (1, 72, 24, 12, 20, 2, 1),
    "64": (1, 128, 64, 7, 16, 1, 1),
    "no-padding": (1, 32, 16, 5, 24, 1, 0),
    "wide-padding": (1, 32, 8, 2, 3, 2, 5),
    "many-rows": (1, 32, 16, 200, 3, 1, 1),
}
FUNCTIONS = {"relu": torch.relu} | {name: unary.function for name, unary in UNARY.items()}


def problem(case, dtype, seed=0):
    n, channels, width, h, w, _, _ = case
    torch.manual_seed(seed)
    x = between_sentinels((n, channels, h, w), dtype).copy_(3 * torch.randn(n, channels, h, w))
    return x, torch.randn(channels, width, 3, 3).to(dtype), torch.randn(channels)


def run(x, weight, shift, stride, padding, function=None):
    sizes = ((s + 2 * padding - 3) // stride + 1 for s in x.shape[2:])
    out = between_sentinels((*x.shape[:2], *sizes), x.dtype)
    number = POINTWISE.index(function)
    library.namespace().grouped_conv(x, pack(weight), shift, out, weight.shape[1], stride, padding, number)
    assert sentinels_intact(out)
    return out


def by_torch(x, weight, shift, stride, padding, function=None):
    groups = x.shape[1] // weight.shape[1]
    y = F.conv2d(x, weight.to(x.dtype), shift.to(x.dtype), stride, padding, 1, groups)
    return y if function is None else FUNCTIONS[function](y)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_float64(case, dtype):
    x, weight, shift = problem(case, dtype)
    arguments = weight, shift, *case[5:]
    assert_within_budget(run(x, *arguments), by_torch(x, *arguments), by_torch(x.double(), *arguments), "grouped")


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("function", POINTWISE[1:])
def test_what_follows(function, dtype):
    x, weight, shift = problem((1, 32, 8, 13, 17, 1, 1), dtype)
    arguments = weight, shift, 1, 1, function
    assert_within_budget(run(x, *arguments), by_torch(x, *arguments), by_torch(x.double(), *arguments), function)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("width", [4, 8, 16, 24])
def test_a_nan_or_an_infinity_stays_in_its_group(width, value):
    x, weight, shift = problem((1, 48, width, 6, 21, 1, 1), torch.float32)
    x[0, width + 1, 2, 19] = value
    ours, theirs = run(x, weight, shift, 1, 1), by_torch(x, weight, shift, 1, 1)
    special = torch.zeros(1, 48, 6, 21, dtype=torch.bool)
    special[0, width : 2 * width, 1:4, 18:21] = True
    assert torch.equal(~ours.isfinite(), special)
    torch.testing.assert_close(ours[special], theirs[special], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_same_bits_for_every_thread_count_and_batch(dtype, threads):
    x, weight, shift = problem((3, 48, 16, 28, 30, 1, 1), dtype)
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
        pytest.param({"stride": 3}, "got groups of 8 of 16 channels and stride 3", id="stride"),
        pytest.param({"width": 0}, "got groups of 0 of 16 channels and stride 1", id="no-width"),
        pytest.param({"width": 2}, "got groups of 2 of 16 channels and stride 1", id="width"),
        pytest.param({"width": 32}, "got groups of 32 of 16 channels and stride 1", id="wider-than-the-map"),
        pytest.param({"function": 7}, "activation is 7, but the kernel has 0 to 6", id="function"),
        pytest.param({"shift": torch.zeros(3)}, "shift must be contiguous float32 of 16 values", id="shift"),
        pytest.param({"weight": torch.zeros(9, 16, 16)}, "weight must be contiguous, of x's dtype, with 1152", id="weight"),
        pytest.param({"out": torch.zeros(1, 16, 1, 1)}, "out has shape", id="out"),
        pytest.param({"x": torch.zeros(1, 16, 6, 6)}, "must be dense channels_last", id="layout"),
        pytest.param({"padding": -2}, "no output pixel", id="padding"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    x = torch.zeros(1, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    given = {"x": x, "weight": torch.zeros(9, 8, 16), "shift": torch.zeros(16), "out": torch.full_like(x, 7.0)}
    given |= {"width": 8, "stride": 1, "padding": 1, "function": 0} | change
    with pytest.raises(RuntimeError, match=message):
        library.namespace().grouped_conv(*given.values())
    assert (given["out"] == 7).all() or "out" in change


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param((32, 32, 3, 1, 1, 1, 4), None, id="groups-of-8"),
        pytest.param((32, 32, 3, 1, 1, 1, 1), "several groups", id="one-group"),
        pytest.param((32, 64, 3, 1, 1, 1, 4), "that the convolution keeps", id="other-channels"),
        pytest.param((8, 8, 3, 1, 1, 1, 2), "16 channels or more", id="few-channels"),
        pytest.param((24, 24, 3, 1, 1, 1, 2), "groups of 4, 8, or an even number", id="groups-of-12"),
        pytest.param((32, 32, 3, 1, 1, 1, 32), "groups of 4, 8, or an even number", id="depthwise"),
        pytest.param((32, 32, 3, 1, 2, 2, 4), "3x3, stride 1 or 2", id="dilation"),
        pytest.param((32, 32, 5, 1, 2, 1, 4), "3x3, stride 1 or 2", id="5x5"),
        pytest.param((32, 32, 3, 3, 1, 1, 4), "3x3, stride 1 or 2", id="stride"),
    ],
)
def test_which_convolutions_it_runs(arguments, why):
    step = ConvBn("conv", nn.Conv2d(*arguments, bias=False), None)
    found = Grouped.why_not(step, torch.float32)
    assert found is None if why is None else why in found


def test_batch_of_none():
    assert run(torch.empty(0, 16, 6, 6), torch.zeros(16, 4, 3, 3), torch.zeros(16), 1, 1).shape == (0, 16, 6, 6)


@isa.outermost
@pytest.mark.parametrize("lower", isa.SETS[:-1])
def test_lower_instruction_sets(lower):
    isa.run_again(lower, __file__, OMP_NUM_THREADS="1")
