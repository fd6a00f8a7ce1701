"""Folded convolutions on the matrix unit of a CPU (AMX): float32 as the sum of three bfloat16, or bfloat16. docs/amx.md.

Classes as in frozen_conv.py.
"""

import torch
import torch.nn.functional as F

from . import layout, native
from .fold import fold


def why_no_unit():
    """None, or why there is no matrix unit to use."""
    if native.why_absent() is not None:
        return native.why_absent()
    return None if native.cpu_isa() == "amx" else "this CPU has no matrix unit, or it is not used"


def is_square(conv):
    return not isinstance(conv.padding, str) and all(a == b for a, b in (conv.stride, conv.padding, conv.dilation))


class Amx:
    """A convolution with its shift, residual and ReLU; any kernel, stride, padding and dilation, one group."""

    name = "amx"

    def __init__(self, site, dtype):
        weight, self.bias = fold(site.conv, site.bn)
        self.ops = native.namespace()
        self.weight = self.ops.amx_pack(weight.to(dtype).contiguous())
        conv = site.conv
        self.channels, self.relu = weight.shape[0], site.relu
        self.arguments = (*conv.kernel_size, conv.stride[0], conv.padding[0], conv.dilation[0])

    def __call__(self, x, residual=None):
        out = residual
        if out is None:
            kernel_h, kernel_w, stride, padding, dilation = self.arguments
            height = (x.shape[2] + 2 * padding - (kernel_h - 1) * dilation - 1) // stride + 1
            width = (x.shape[3] + 2 * padding - (kernel_w - 1) * dilation - 1) // stride + 1
            shape = x.shape[0], self.channels, height, width
            out = torch.empty(shape, dtype=x.dtype, memory_format=layout.CHANNELS_LAST)
        self.ops.amx_conv(x, self.weight, self.bias, residual, out, *self.arguments, self.relu)
        return out

    @staticmethod
    def why_not(site, dtype):
        if why_no_unit() is not None:
            return why_no_unit()
        if site.conv.groups != 1:
            return "the matrix unit is for convolutions of one group"
        return None if is_square(site.conv) else "stride, padding and dilation must be square"


class AmxStem:
    """Convolution and 3x3/2 max-pool in one pass over the image, which may have any layout, and float32 for bfloat16."""

    name, any_layout = "amx stem", True

    def __init__(self, site, dtype):
        weight, bias = fold(site.conv, site.bn)
        self.ops, self.dtype, self.channels = native.namespace(), dtype, weight.shape[0]
        self.weight = self.ops.amx_stem_pack(weight.contiguous(), dtype == torch.bfloat16)
        self.bias = F.pad(bias, (0, -self.channels % 32))
        conv = site.conv
        self.arguments = conv.kernel_size[0], conv.stride[0], conv.padding[0]

    def __call__(self, x):
        kernel, stride, padding = self.arguments
        pixels = ((size + 2 * padding - kernel) // stride for size in x.shape[2:])  # the convolution's size, less 1
        shape = (x.shape[0], self.channels, *(p // 2 + 1 for p in pixels))
        out = torch.empty(shape, dtype=self.dtype, memory_format=layout.CHANNELS_LAST)
        self.ops.amx_stem(x, self.weight, self.bias, out, *self.arguments)
        return out

    @staticmethod
    def why_not(site, dtype):
        if why_no_unit() is not None:
            return why_no_unit()
        conv = site.conv
        square = is_square(conv) and conv.kernel_size[0] == conv.kernel_size[1] and conv.dilation == (1, 1)
        fits = conv.groups == 1 and conv.kernel_size[0] <= 8 and conv.in_channels <= 4
        if not square or not fits:
            return "the stem on the matrix unit is for small square kernels over few channels"
        return None if conv.padding[0] < conv.kernel_size[0] else "the padding is as wide as the kernel"
