"""The convolutions on the matrix unit: NaN, infinities and subnormals, and memory that nobody has written."""

import pytest
import torch
from amx_cases import CASES, DTYPE_IDS, DTYPES, between_sentinels, ops, problem, run

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))

# Blocks of channels that are not full, pixels between the rows that belong to no output, planes of a stride, several chunks.
SPREAD = {
    name: CASES[name]
    for name in ("one-over-everywhere", "channels-3-filters-17", "kernel-3-dilation-2-stride-2", "kernel-1-stride-2",
                 "kernel-2x7-stride-3", "map-1x40", "kernel-1-padding-3", "split-panels-images-stride-2")
}  # fmt: skip


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3.4e38], ids=["nan", "inf", "rounds-to-inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", SPREAD)
def test_nan_comes_out_exactly_where_torch_has_it(name, dtype, bad):
    """One at every pixel, each in an image of its own."""
    case = SPREAD[name]
    x, weight, shift, _, convolve = problem(case, dtype)
    pixels = x.shape[2] * x.shape[3]
    at, channels = torch.arange(pixels), torch.arange(pixels) * 7 % x.shape[1]
    poisoned, mask = between_sentinels((pixels, *x.shape[1:]), dtype), torch.zeros(pixels, *x.shape[1:], dtype=dtype)
    poisoned.copy_(x[:1].expand_as(poisoned))
    poisoned[at, channels, at // x.shape[3], at % x.shape[3]] = bad
    mask[at, channels, at // x.shape[3], at % x.shape[3]] = torch.nan
    packed, first = ops.amx_pack(weight), between_sentinels((1, *x.shape[1:]), dtype).copy_(x[:1])
    got, clean = run(case, poisoned, packed, shift), run(case, first, packed, shift)
    # Not in bfloat16: there oneDNN's own kernels spread a NaN of the last of an odd number of channels (Zen 5, torch 2.13).
    reads = convolve(mask.double(), torch.ones_like(weight).double(), torch.zeros_like(shift)).isnan()
    stays_infinite = dtype == torch.bfloat16 and bad == bad
    wrong = (got.isinf() != reads) | got.isnan() if stays_infinite else got.isnan() != reads
    wrong |= ~reads & (got != clean)
    assert reads.any() and wrong.flatten(1).any(1).nonzero().flatten().tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", [*SPREAD, "two-chunks-of-channels", "chunks-and-groups", "rows-in-segments"])
def test_memory_that_nobody_wrote_changes_nothing(threads, name, dtype):
    """The workspace comes from torch, which fills it with NaN here (conftest.py), or, other memory in turn, does not."""
    x, weight, shift, residual, _ = problem(CASES[name], dtype)
    packed = ops.amx_pack(weight)
    threads(3)
    poisoned = run(CASES[name], x, packed, shift, residual)
    assert poisoned.isfinite().all()
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        for _ in range(2):
            assert torch.equal(run(CASES[name], x, packed, shift, residual), poisoned)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_the_workspace_is_poisoned():
    """Or the test above proves nothing."""
    for dtype in DTYPES:
        assert torch.zeros(1, dtype=dtype).new_empty(64, dtype=torch.bfloat16).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_subnormal_values_and_parts_are_zero(dtype):
    """As the unit has it, and so its emulation: 0 for a subnormal value or product, and no part below 2^-126."""
    case = (1, 32, 32, 4, 8, 1, 1, 1, 0, 1)
    shift, one = torch.zeros(32), torch.eye(32, dtype=dtype).view(32, 32, 1, 1)

    def through(values, weight):
        x = between_sentinels((1, 32, 4, 8), dtype).copy_(values.to(dtype).expand(1, 32, 4, 8))
        return run(case, x, ops.amx_pack(weight), shift)

    tiny = torch.finfo(dtype).tiny
    assert (through(torch.tensor([tiny]), one) == tiny).all()
    assert (through(torch.tensor([tiny / 2]), one) == 0).all()
    assert (through(torch.tensor([2.0**-70]), one * 2.0**-70) == 0).all()
    value = torch.tensor([1 + 2.0**-9 + 2.0**-18]).to(dtype)
    assert (through(value * 2.0**-100, one) == value * 2.0**-100).all()
    # The parts of 2^-8 and 2^-16 of it are subnormal: what is left has the 8 bits of a bfloat16.
    assert (through(value * 2.0**-125, one) == value.bfloat16() * 2.0**-125).all()
