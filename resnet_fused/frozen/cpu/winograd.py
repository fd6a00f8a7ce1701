"""Folded 3x3 convolutions of stride 1 by Winograd's algorithm. The classes work as in frozen/cpu/convolutions.py."""

import torch

from ...kernels import layout, library
from ..fold import fold


class _Winograd:
    """F(m x m, 3x3): 4 (m = 4) or 2.25 (m = 2) times fewer multiplications; float32, bfloat16. docs/design/winograd.md
    says what `taps` are."""

    m, taps, growth = 4, False, 4.0  # growth: bytes of the packed weights, in those of the plain ones

    def __init__(self, step, dtype):
        weight, self.bias = fold(step.conv, step.bn)
        self.ops = library.namespace()
        self.weight = self.ops.winograd_pack(weight.contiguous(), None, self.m, self.taps, dtype == torch.bfloat16)
        self.channels, self.padding, self.relu = weight.shape[0], step.conv.padding[0], step.relu

    def __call__(self, x, residual=None):
        out = residual
        if out is None:
            grow = 2 * self.padding - 2
            shape = (x.shape[0], self.channels, x.shape[2] + grow, x.shape[3] + grow)
            out = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=layout.CHANNELS_LAST)
        self.ops.winograd_conv(x, self.weight, self.bias, residual, out, self.m, self.padding, self.relu, None)
        return out

    @classmethod
    def why_not(cls, step, dtype):
        conv = step.conv
        if library.why_absent() is not None:
            return library.why_absent()
        if dtype == torch.bfloat16:
            if cls.taps:
                return "weights in bfloat16 are small enough to be kept transformed"
            if library.cpu_isa() != "avx512_bf16":
                return "Winograd in bfloat16 is for CPUs with AVX512-BF16 and no matrix unit"
        if conv.kernel_size != (3, 3) or conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
            return "Winograd is for 3x3 convolutions of stride 1"
        return None if conv.padding in ((0, 0), (1, 1)) else "Winograd is for padding 0 or 1"


class WinogradF4(_Winograd):
    name = "winograd F(4x4,3x3)"


class WinogradF4Taps(_Winograd):
    name, taps, growth = "winograd F(4x4,3x3), weights transformed on the fly", True, 1.0


class WinogradF2(_Winograd):
    name, m, growth = "winograd F(2x2,3x3)", 2, 1.8


class WinogradF2Taps(_Winograd):
    name, m, taps, growth = "winograd F(2x2,3x3), weights transformed on the fly", 2, True, 1.0


F4 = (WinogradF4, WinogradF4Taps)
WINOGRAD = (*F4, WinogradF2, WinogradF2Taps)
