"""Stems for the matrix unit and how the tests run them: test_amx_stem.py."""

import functools

import torch
import torch.nn.functional as F
from amx_cases import DTYPES, between_sentinels, ops, sentinels_intact

# n, c, k, h, w, kernel, stride, padding. A tile is 16 pixels of the convolution, a panel 32 filters; pixels are 4 channels
# apart and a row of a tile is 8 of them, whatever the kernel.
CASES = {
    "resnet": (2, 3, 64, 64, 50, 7, 2, 3),
    "one-pixel": (2, 3, 64, 1, 1, 7, 2, 3),
    "one-tile-exactly": (1, 4, 32, 16, 16, 1, 1, 0),
    "one-over-everywhere": (1, 4, 33, 17, 17, 3, 1, 1),
    "channels-1-filters-100": (3, 1, 100, 9, 8, 3, 1, 1),
    "channels-2-filters-17": (2, 2, 17, 33, 41, 7, 2, 3),
    "filters-1": (1, 3, 1, 12, 35, 7, 2, 3),
    "kernel-1-stride-2": (2, 3, 40, 9, 70, 1, 2, 0),
    "kernel-2-stride-3": (1, 4, 40, 13, 30, 2, 3, 1),
    "kernel-3-cifar": (2, 3, 16, 32, 32, 3, 1, 1),
    "kernel-4-padding-3": (1, 3, 8, 6, 7, 4, 1, 3),
    "kernel-5-stride-3": (1, 3, 33, 50, 31, 5, 3, 2),
    "kernel-7-no-padding": (1, 4, 5, 7, 7, 7, 2, 0),
    "kernel-8": (2, 3, 24, 19, 23, 8, 2, 3),
    "kernel-8-stride-4": (1, 1, 8, 40, 9, 8, 4, 7),
    "stride-above-the-kernel": (1, 3, 8, 40, 40, 3, 5, 0),
    "map-1x200": (1, 3, 8, 1, 200, 7, 2, 3),
    "map-200x1": (1, 3, 8, 200, 1, 7, 2, 3),
}
# Of each kind one that takes no time in the emulation.
FEW = ["one-over-everywhere", "channels-2-filters-17", "kernel-2-stride-3", "kernel-8", "map-200x1"]


def out_shape(x, k, kernel, stride, padding):
    return (len(x), k, *(((size + 2 * padding - kernel) // stride) // 2 + 1 for size in x.shape[2:]))


@functools.cache
def problem(case, dtype):
    """x, weight and shift in float32, whose values are those of `dtype`."""
    n, c, k, h, w, kernel, _, _ = case
    torch.manual_seed(sum(case))
    weight = torch.randn(k, c, kernel, kernel) / (c * kernel**2) ** 0.5
    # torch rounds a bias to the dtype of x.
    return torch.randn(n, c, h, w).to(dtype).float(), weight.to(dtype).float(), torch.randn(k).bfloat16().float()


def reference(case, x, weight, shift):
    stride, padding = case[6:]
    return F.max_pool2d(F.conv2d(x, weight, shift, stride, padding).relu(), 3, 2, 1)


def run(case, x, weight, shift, dtype):
    """The op on an `x` of any strides, into poisoned memory between sentinels."""
    k, kernel, stride, padding = case[2], *case[5:]
    packed = ops.amx_stem_pack(weight, dtype == torch.bfloat16)
    out = between_sentinels(out_shape(x, k, kernel, stride, padding), dtype)
    ops.amx_stem(x, packed, F.pad(shift, (0, -k % 32)), out, kernel, stride, padding)
    assert sentinels_intact(out)
    return out


def outputs(names=FEW):
    """{(name, dtype): output}, to compare the unit with its emulation in another process."""
    return {
        (f"stem {name}", str(dtype)): run(CASES[name], *problem(CASES[name], dtype), dtype).clone()
        for name in names
        for dtype in DTYPES
    }
