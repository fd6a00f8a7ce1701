"""Winograd in bfloat16 (csrc/cpu/winograd), against float64 beside the error of torch's own bfloat16 convolution."""

import pytest
import torch
import torch.nn.functional as F
from amx_cases import between_sentinels, sentinels_intact

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native
BF16 = torch.bfloat16
# n, c, k, h, w: every remainder of a tile, of a line of 32 channels (pairs of them) and of a panel; many tiles, few tiles.
CASES = [
    *[(1, 3, 17, size, 16 - size) for size in range(1, 16)],
    (2, 16, 64, 1, 1), (3, 1, 1, 4, 4), (1, 31, 3, 15, 15), (2, 65, 100, 5, 13), (3, 100, 65, 6, 6), (1, 33, 33, 3, 9),
    (1, 64, 64, 28, 28), (2, 256, 128, 14, 14), (2, 512, 320, 7, 7),
]  # fmt: skip
# Error allowed, RMS and maximum over the whole output, in errors of torch's + half a unit of a typical value. Two roundings
# more, of transformed weights and pixels: F(2x2) 1.2 and F(4x4) 2.9 times torch's RMS at 64 to 512 channels (measured).
FACTORS = {2: (2.0, 4.0), 4: (5.0, 12.0)}


def problem(n, c, k, h, w):
    torch.manual_seed(n + c + k + h + w)
    x = between_sentinels((n, c, h, w), BF16).copy_(torch.randn(n, c, h, w))
    return x, torch.randn(k, c, 3, 3) / (3 * c**0.5), torch.randn(k).bfloat16().float()


def conv(x, packed, shift, residual=None, *, k, m, padding=1, relu=False, out=None):
    n, _, h, w = x.shape
    out = between_sentinels((n, k, h + 2 * padding - 2, w + 2 * padding - 2), BF16) if out is None else out
    ops.winograd_conv(x, packed, shift, residual, out, m, padding, relu, None)
    assert sentinels_intact(out) and sentinels_intact(x)
    return out


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, m):
    x, weight, shift = problem(*case)
    packed = ops.winograd_pack(weight, None, m, False, True)
    for padding in (0, 1) if 2 < min(case[3:]) < 28 else (1,):
        exact = F.conv2d(x.double(), weight.double(), shift.double(), padding=padding)
        eager = F.conv2d(x, weight.to(BF16), shift.to(BF16), padding=padding)
        got = conv(x, packed, shift, k=case[2], m=m, padding=padding)
        for norm, factor in zip((lambda t: t.square().mean().sqrt(), lambda t: t.abs().max()), FACTORS[m], strict=True):
            allowed = factor * (norm(eager.double() - exact) + torch.finfo(BF16).eps / 2 * norm(exact))
            error = norm(got.double() - exact)
            assert error <= allowed, f"padding {padding}: error {error:.3g}, allowed {allowed:.3g}"

        assert torch.equal(conv(x, packed, shift, k=case[2], m=m, padding=padding, relu=True), torch.relu(got))
        # A residual is added in float32, before the rounding.
        residual = between_sentinels(got.shape, BF16).copy_(torch.randn(got.shape))
        added = conv(x, packed, shift, residual, k=case[2], m=m, padding=padding)
        assert (
            added.float() - (got.float() + residual.float())
        ).abs().max() <= 2**-7 * added.float().abs().max() + 2**-7
        conv(x, packed, shift, residual, k=case[2], m=m, padding=padding, relu=True, out=residual)
        assert torch.equal(residual, torch.relu(added)) and sentinels_intact(residual)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("case", [(3, 64, 64, 12, 9), (2, 200, 130, 7, 7), (1, 17, 40, 5, 5)], ids=str)
def test_same_bits_for_every_thread_count_and_slice(case, m):
    x, weight, shift = problem(*case)
    packed = ops.winograd_pack(weight, None, m, False, True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4, 4):
            torch.set_num_threads(count)
            results.append(conv(x, packed, shift, k=case[2], m=m))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    last = between_sentinels((1, *x.shape[1:]), BF16).copy_(x[-1:])
    assert torch.equal(conv(last, packed, shift, k=case[2], m=m), results[0][-1:])


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_tiles(m, bad):
    x, weight, shift = problem(2, 20, 40, 11, 14)
    packed = ops.winograd_pack(weight, None, m, False, True)
    clean = conv(x, packed, shift, k=40, m=m)
    y, column = 5, 6
    x[1, 7, y, column] = bad
    got = conv(x, packed, shift, k=40, m=m)
    direct = F.conv2d(x, weight.to(BF16), shift.to(BF16), padding=1)
    reached = torch.zeros(11, 14, dtype=torch.bool)
    for top in range(0, 11, m):
        for left in range(0, 14, m):
            if top - 1 <= y < top + m + 1 and left - 1 <= column < left + m + 1:
                reached[top : top + m, left : left + m] = True
    assert not (got.isfinite() & ~direct.isfinite()).any()
    assert torch.equal(got[0], clean[0]) and torch.equal(got[1][:, ~reached], clean[1][:, ~reached])
    if bad != bad:
        assert conv(x, packed, shift, k=40, m=m, relu=True)[1, :, y, column].isnan().all()


@pytest.mark.parametrize(
    "message",
    ["taps are for float32", "x must be bfloat16|x must be float32", "out must be bfloat16", "residual must be bfloat16",
     "packed must be contiguous"],
)  # fmt: skip
def test_messages(message):
    x, weight, shift = problem(1, 8, 16, 6, 6)
    packed, out = ops.winograd_pack(weight, None, 4, False, True), between_sentinels((1, 16, 6, 6), BF16)
    calls = {
        "taps": lambda: ops.winograd_pack(weight, None, 4, True, True),
        "x": lambda: conv(x.half(), packed, shift, k=16, m=4, out=out),
        "out": lambda: conv(x, packed, shift, k=16, m=4, out=out.float()),
        "residual": lambda: conv(x, packed, shift, out.float(), k=16, m=4, out=out),
        "packed": lambda: conv(x, ops.winograd_pack(weight, None, 4, False), shift, k=16, m=4, out=out),
    }
    with pytest.raises(RuntimeError, match=message):
        calls[message.split()[0]]()
    assert out.isnan().all()
