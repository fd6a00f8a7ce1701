"""Convolutions and how the tests of the matrix unit and of vectors run them: test_amx.py, test_amx_special_values.py,
test_direct.py."""

import functools

import torch
import torch.nn.functional as F
from eager import eager_of

from resnet_fused.measure.accuracy import assert_within_budget, channel_dim_of

ops = torch.ops.resnet_fused_native
DTYPES = [torch.float32, torch.bfloat16]
DTYPE_IDS = ["f32", "bf16"]
# n, c, k, h, w, kernel_h, kernel_w, stride, padding, dilation. Where csrc/cpu/direct/plan.cpp takes a way of its own, the name
# says so. A block is 32 channels, a panel 32 filters, a call of the kernel 32 pixels of rows that share their zeros.
CASES = {
    "one-value": (1, 1, 1, 1, 1, 1, 1, 1, 0, 1),
    "one-tile-exactly": (1, 32, 32, 4, 8, 1, 1, 1, 0, 1),
    "one-over-everywhere": (1, 33, 33, 3, 11, 1, 1, 1, 0, 1),
    "channels-3-filters-17": (2, 3, 17, 9, 5, 3, 3, 1, 1, 1),
    "channels-17-filters-3": (1, 17, 3, 5, 13, 3, 3, 1, 1, 1),
    "channels-1-filters-100": (3, 1, 100, 6, 7, 3, 3, 1, 1, 1),
    "channels-100-filters-1": (1, 100, 1, 7, 6, 3, 3, 1, 1, 1),
    "channels-65-filters-64": (5, 65, 64, 4, 3, 3, 3, 1, 1, 1),
    "map-1x1": (4, 16, 20, 1, 1, 3, 3, 1, 1, 1),
    "map-1x40": (1, 5, 9, 1, 40, 3, 3, 1, 1, 1),
    "map-40x1": (1, 5, 9, 40, 1, 3, 3, 1, 1, 1),
    "kernel-1-stride-2": (2, 40, 48, 9, 8, 1, 1, 2, 0, 1),
    "kernel-1-stride-3-padding-2": (1, 8, 8, 10, 7, 1, 1, 3, 2, 1),
    "kernel-1-padding-1": (2, 8, 24, 5, 6, 1, 1, 1, 1, 1),
    "kernel-1-padding-3": (1, 8, 24, 2, 3, 1, 1, 1, 3, 1),
    "kernel-2": (1, 12, 20, 7, 8, 2, 2, 1, 0, 1),
    "kernel-2-stride-2-padding-1": (2, 12, 20, 7, 8, 2, 2, 2, 1, 1),
    "kernel-2-stride-3": (1, 12, 20, 11, 10, 2, 2, 3, 0, 1),
    "kernel-3-no-padding": (2, 24, 40, 8, 9, 3, 3, 1, 0, 1),
    "kernel-3-padding-2": (1, 24, 40, 5, 9, 3, 3, 1, 2, 1),
    "kernel-3-padding-3-stride-2": (1, 24, 40, 5, 9, 3, 3, 2, 3, 1),
    "kernel-3-stride-2": (2, 33, 34, 15, 14, 3, 3, 2, 1, 1),
    "kernel-3-stride-3": (3, 10, 34, 13, 12, 3, 3, 3, 1, 1),
    "kernel-3-dilation-2": (1, 20, 36, 11, 9, 3, 3, 1, 2, 2),
    "kernel-3-dilation-2-stride-2": (2, 20, 36, 11, 9, 3, 3, 2, 2, 2),
    "kernel-3-dilation-2-stride-3-no-padding": (1, 20, 36, 12, 15, 3, 3, 3, 0, 2),
    "kernel-5": (1, 6, 18, 9, 10, 5, 5, 1, 2, 1),
    "kernel-5-stride-3-padding-1": (2, 6, 18, 9, 10, 5, 5, 3, 1, 1),
    "kernel-7-stride-2": (2, 3, 64, 23, 26, 7, 7, 2, 3, 1),
    "kernel-7-fills-the-map": (1, 3, 10, 7, 7, 7, 7, 1, 0, 1),
    "kernel-1x3": (1, 16, 32, 6, 9, 1, 3, 1, 1, 1),
    "kernel-3x1-stride-2": (2, 16, 32, 6, 9, 3, 1, 2, 1, 1),
    "kernel-5x2-dilation-2": (1, 16, 32, 12, 8, 5, 2, 1, 1, 2),
    "kernel-2x7-stride-3": (1, 7, 11, 9, 17, 2, 7, 3, 3, 1),
    "stride-above-the-kernel-and-the-map": (1, 9, 9, 2, 2, 1, 1, 3, 0, 1),
    "two-chunks-of-channels": (2, 160, 40, 5, 6, 3, 3, 1, 1, 1),
    "two-chunks-in-bfloat16": (1, 480, 33, 4, 4, 3, 3, 1, 1, 1),
    "four-chunks": (1, 512, 64, 7, 7, 3, 3, 1, 1, 1),
    "rows-in-segments": (2, 64, 8, 41, 61, 1, 1, 1, 0, 1),
    "images-in-groups": (5, 64, 24, 26, 25, 3, 3, 1, 1, 1),
    "chunks-and-groups": (5, 160, 24, 19, 17, 3, 3, 1, 1, 1),
    "split-panels": (1, 64, 128, 4, 5, 3, 3, 1, 1, 1),
    "split-panels-images-stride-2": (2, 40, 150, 5, 4, 3, 3, 2, 1, 1),
    "resnet34-1": (1, 64, 64, 56, 56, 3, 3, 1, 1, 1),
    "resnet34-2-stride": (1, 64, 128, 56, 56, 3, 3, 2, 1, 1),
    "resnet34-3": (1, 256, 256, 14, 14, 3, 3, 1, 1, 1),
    "resnet34-4-projection": (1, 256, 512, 14, 14, 1, 1, 2, 0, 1),
    "resnet50-1-expand": (1, 64, 256, 28, 56, 1, 1, 1, 0, 1),
    "resnet50-4-reduce": (2, 2048, 128, 7, 7, 1, 1, 1, 0, 1),
}  # fmt: skip
# Of each kind one that takes no time in the emulation.
FEW = ["one-over-everywhere", "channels-3-filters-17", "kernel-3-dilation-2-stride-2", "kernel-3-padding-3-stride-2",
       "kernel-2x7-stride-3", "two-chunks-of-channels", "two-chunks-in-bfloat16", "split-panels-images-stride-2"]  # fmt: skip


def between_sentinels(shape, dtype, offset=1):
    """NaN, dense channels_last, starting `offset` values after an aligned address, between sentinels."""
    n, c, h, w = shape
    room = torch.full((n * c * h * w + offset + 16,), 77.0, dtype=dtype)
    return room.as_strided(shape, (c * h * w, 1, w * c, c), offset).fill_(torch.nan)


def sentinels_intact(t, offset=1):
    room = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return bool((room[:offset] == 77).all() and (room[offset + t.numel() :] == 77).all())


@functools.cache
def problem(case, dtype):
    """x, weight, shift, residual and a function that gives the convolution of what it is given in torch."""
    n, c, k, h, w, kernel_h, kernel_w, stride, padding, dilation = case
    torch.manual_seed(sum(case))
    weight = (torch.randn(k, c, kernel_h, kernel_w) / (c * kernel_h * kernel_w) ** 0.5).to(dtype)
    shift = torch.randn(k).bfloat16().float()  # torch rounds a bias to the dtype of x
    x = between_sentinels((n, c, h, w), dtype).copy_(torch.randn(n, c, h, w))

    def convolve(x, weight, shift):
        return F.conv2d(x, weight, shift.to(x.dtype), stride, padding, dilation)

    exact = convolve(x.double(), weight.double(), shift)
    residual = between_sentinels(exact.shape, dtype).copy_(torch.randn(exact.shape))
    return x, weight, shift, residual, convolve


def run(case, x, packed, shift, residual=None, relu=False, out=None, unit="amx"):
    """The op on `x`, which may have another batch than the case; into poisoned memory between sentinels, or `out`."""
    k, kernel_h, kernel_w, stride, padding, dilation = case[2], *case[5:]
    size = [
        (length + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
        for length, kernel in zip(x.shape[2:], (kernel_h, kernel_w), strict=True)
    ]
    out = between_sentinels((len(x), k, *size), x.dtype) if out is None else out
    convolve = getattr(ops, f"{unit}_conv")
    convolve(x, packed, shift, residual, out, kernel_h, kernel_w, stride, padding, dilation, relu)
    assert sentinels_intact(out) and sentinels_intact(x)
    return out


def check_numbers(case, dtype, unit):
    """`unit`'s convolution against float64 beside torch's own error, and what follows the sum, exactly."""
    x, weight, shift, residual, convolve = problem(case, dtype)
    packed, call = getattr(ops, f"{unit}_pack")(weight), functools.partial(run, unit=unit)
    exact = convolve(x.double(), weight.double(), shift)
    eager = eager_of(lambda: convolve(x, weight, shift), exact)
    # torch rounds a half's sum before it adds; what is wrong by a part or a tap is wrong by far more than half a unit.
    got = call(case, x, packed, shift)
    assert_within_budget(got, eager, exact, "convolution", channel_dim=channel_dim_of(got))

    assert torch.equal(call(case, x, packed, shift, relu=True), torch.relu(got))
    added = call(case, x, packed, shift, residual)
    exact, eager = exact + residual.double(), eager + residual
    assert_within_budget(added, eager, exact, "with a residual", channel_dim=channel_dim_of(got))
    if dtype == torch.float32:
        assert torch.equal(added, got + residual)
    in_place = between_sentinels(residual.shape, dtype).copy_(residual)
    call(case, x, packed, shift, in_place, relu=True, out=in_place)
    assert torch.equal(in_place, torch.relu(added)) and sentinels_intact(residual)


def outputs(names=FEW):
    """{(name, dtype): output}, to compare the unit with its emulation in another process."""
    result = {}
    for name in names:
        for dtype in DTYPES:
            x, weight, shift, residual, _ = problem(CASES[name], dtype)
            packed = ops.amx_pack(weight)
            result[name, str(dtype)] = run(CASES[name], x, packed, shift, residual, relu=True).clone()
    return result
