"""The stem on the matrix unit (convolution, shift, ReLU, max-pool), against float64 beside torch's own error.

Where there is no matrix unit, on its emulation, as test_amx.py.
"""

import pytest
import torch
import torch.nn.functional as F
from amx_cases import DTYPE_IDS, DTYPES, between_sentinels, ops
from amx_stem_cases import CASES, out_shape, problem, reference, run
from eager import eager_of

from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget, channel_dim_of

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_float64(case, dtype):
    x, weight, shift = problem(case, dtype)
    exact = reference(case, *(t.double() for t in (x, weight, shift)))
    got = run(case, x.to(dtype), weight, shift, dtype)
    eager = eager_of(lambda: reference(case, *(t.to(dtype) for t in (x, weight, shift))), exact)
    assert_within_budget(got, eager, exact, "stem", channel_dim=channel_dim_of(got))
    assert torch.equal(run(case, x, weight, shift, dtype), got)  # of float32 the unit gets the same values


NARROW = {
    "kernel-3": (1, 3, 33, 9, 8, 3, 1, 1),
    "kernel-7": (1, 3, 33, 9, 22, 7, 2, 3),
    "kernel-2-stride-3": (1, 1, 8, 9, 26, 2, 3, 0),
    "kernel-8": (1, 4, 8, 10, 19, 8, 2, 3),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3.4e38], ids=["nan", "inf", "rounds-to-inf"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", NARROW)
def test_nan_comes_out_exactly_where_torch_has_it(name, dtype, bad):
    """One at every pixel, each in an image of its own. A row of a tile is 8 pixels wide: of a narrower kernel the last ones
    have weights of 0."""
    case = NARROW[name]
    x, weight, shift = problem(case, dtype)
    pixels, channels = x.shape[2] * x.shape[3], torch.arange(x.shape[2] * x.shape[3]) % x.shape[1]
    poisoned, mask = (t.repeat(pixels, 1, 1, 1) for t in (x, torch.zeros_like(x)))
    poisoned.flatten(2)[torch.arange(pixels), channels, torch.arange(pixels)] = bad
    mask.flatten(2)[torch.arange(pixels), channels, torch.arange(pixels)] = torch.nan
    got, clean = run(case, poisoned, weight, shift, dtype), run(case, x, weight, shift, dtype)
    reads = reference(case, mask, torch.ones_like(weight), torch.zeros_like(shift)).isnan()
    if dtype == torch.float32 or bad != bad:
        wrong = got.isnan() != reads
    else:  # in bfloat16 an infinity stays one, its sign is the weight's, and ReLU makes half of them 0
        expected = reference(case, poisoned.bfloat16().float(), weight, shift)
        wrong = (got.isinf() != expected.isinf()) | got.isnan()
    wrong |= ~reads & (got != clean)
    assert reads.any() and wrong.flatten(1).any(1).nonzero().flatten().tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_a_row_of_nothing_but_nan_and_infinity(dtype):
    case = (2, 3, 40, 21, 43, 7, 2, 3)
    x, weight, shift = (t.clone() for t in problem(case, dtype))
    x[0, :, 11], x[1, 1, :, 17] = torch.nan, -torch.nan
    got, expected = run(case, x, weight, shift, dtype), reference(case, x, weight, shift)
    assert torch.equal(got.isnan(), expected.isnan()) and 0 < got.isnan().sum() < got.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", ["kernel-2-stride-3", "channels-2-filters-17", "kernel-3-cifar", "kernel-8"])
def test_same_bits_for_every_thread_count_batch_and_layout(threads, name, dtype):
    case = CASES[name]
    x, weight, shift = problem(case, dtype)
    expected = run(case, x, weight, shift, dtype)
    for count in (1, 2, 3, 4, 4):
        threads(count)
        assert torch.equal(run(case, x, weight, shift, dtype), expected)
    assert torch.equal(run(case, x[-1:], weight, shift, dtype), expected[-1:])
    n, c, h, w = x.shape
    sliced = torch.randn(n, c + 2, h + 3, 2 * w + 1)[:, 1 : c + 1, 2 : h + 2, 1::2].copy_(x)
    layouts = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": sliced,
        "columns first": x.transpose(2, 3).contiguous().transpose(2, 3),
        "between NaN": F.pad(x, (9, 9, 9, 9), value=torch.nan)[:, :, 9 : 9 + h, 9 : 9 + w],
    }
    for layout, same in layouts.items():
        assert torch.equal(same, x)
        assert torch.equal(run(case, same, weight, shift, dtype), expected), layout
        assert torch.equal(run(case, same.to(dtype), weight, shift, dtype), expected), layout
    grey = x[:, :1].expand_as(x)
    assert torch.equal(run(case, grey, weight, shift, dtype), run(case, grey.contiguous(), weight, shift, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_batch_of_none(memory_format, dtype):
    case = CASES["resnet"]
    x, weight, shift = problem(case, dtype)
    got = run(case, x[:0].contiguous(memory_format=memory_format), weight, shift, dtype)
    assert got.shape == (0, 64, 16, 13)
    packed = ops.amx_stem_pack(weight, dtype == torch.bfloat16)
    out = torch.empty(0, 64, 16, 13, dtype=dtype).contiguous(memory_format=memory_format)
    ops.amx_stem(x[:0].to(dtype), packed, shift, out, 7, 2, 3)


def test_large_and_small_values_keep_their_precision():
    """Down to where parts of a float32 that matter become subnormal, 2^-102, and up to where one rounds to an infinity."""
    case = CASES["channels-2-filters-17"]
    x, weight, shift = problem(case, torch.float32)
    for scale in (2.0**-100, 2.0**-60, 2.0**60, 2.0**122):
        scaled, shifted = x * scale, shift * scale
        exact = reference(case, *(t.double() for t in (scaled, weight, shifted))) / scale
        got, eager = (f(case, scaled, weight, shifted) / scale for f in (lambda *a: run(*a, torch.float32), reference))
        assert_within_budget(got, eager, exact, f"times {scale}")


CASE = (2, 3, 16, 12, 12, 7, 2, 3)
BAD = {
    "x and out must be [n, c, h, w]": lambda x, p, s, out, stem: stem(x[0], p, s, out),
    "out must be float32 or bfloat16": lambda x, p, s, out, stem: stem(x, p, s, out.half()),
    "x must be float32, or bfloat16 like out": lambda x, p, s, out, stem: stem(x.bfloat16(), p, s, out),
    "x must be float32": lambda x, p, s, out, stem: stem(x.double(), p, s, out),
    "kernel must be 1 to 8": lambda x, p, s, out, stem: stem(x, p, s, out, kernel=9),
    "stride positive": lambda x, p, s, out, stem: stem(x, p, s, out, stride=0),
    "padding less than kernel": lambda x, p, s, out, stem: stem(x, p, s, out, padding=7),
    "more than 4 input channels": lambda x, p, s, out, stem: stem(torch.randn(2, 5, 12, 12), p, s, out),
    "no output pixel or channel": lambda x, p, s, out, stem: stem(x[:, :, :3], p, s, out, padding=1),
    "out has the wrong shape": lambda x, p, s, out, stem: stem(x, p, s, out, stride=1),
    "out must be dense channels_last": lambda x, p, s, out, stem: stem(x, p, s, out.contiguous()),
    "packed must come from amx_stem_pack": lambda x, p, s, out, stem: stem(x, p[1:], s, out),
    "of this shape and dtype": lambda x, p, s, out, stem: stem(x, p, s, out.bfloat16()),
    "shift must be contiguous float32, padded to 32": lambda x, p, s, out, stem: stem(x, p, s[:16], out),
    "kernel at most 8": lambda x, p, s, out, stem: ops.amx_stem_pack(torch.randn(4, 3, 9, 9), False),
    "weight must be contiguous float32": lambda x, p, s, out, stem: ops.amx_stem_pack(x.bfloat16(), False),
    "c at most 4": lambda x, p, s, out, stem: ops.amx_stem_pack(torch.randn(4, 5, 3, 3), False),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_messages(message):
    x, weight, shift = problem(CASE, torch.float32)
    before = between_sentinels(out_shape(x, 16, *CASE[5:]), torch.float32).fill_(3.0)
    out = before.clone()

    def stem(x, packed, shift, out, kernel=7, stride=2, padding=3):
        ops.amx_stem(x, packed, shift, out, kernel, stride, padding)

    with pytest.raises(RuntimeError) as caught:
        BAD[message](x, ops.amx_stem_pack(weight, False), F.pad(shift, (0, 16)), out, stem)
    assert message in str(caught.value)
    assert torch.equal(out, before)
