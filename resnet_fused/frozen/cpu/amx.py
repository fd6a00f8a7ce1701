"""Folded convolutions on the matrix unit of a CPU (AMX): float32 as the sum of three bfloat16, or bfloat16. docs/amx.md.

Classes as in frozen/cpu/convolutions.py.
"""

import torch
import torch.nn.functional as F

from ...kernels import layout, library
from ..fold import fold
from .direct import Direct, is_square


def why_no_unit():
    """None, or why there is no matrix unit to use."""
    if library.why_absent() is not None:
        return library.why_absent()
    return None if library.cpu_isa() == "amx" else "this CPU has no matrix unit, or it is not used"


class Amx(Direct):
    """A convolution with its shift, residual and ReLU; any kernel, stride, padding and dilation, one group."""

    name, unit = "amx", "amx"

    @staticmethod
    def why_not(site, dtype):
        return why_no_unit() or Direct.why_not(site, dtype)


class AmxStem:
    """Convolution and 3x3/2 max-pool in one pass over the image, which may have any layout, and float32 for bfloat16."""

    name, any_layout = "amx stem", True

    def __init__(self, site, dtype):
        weight, bias = fold(site.conv, site.bn)
        self.ops, self.dtype, self.channels = library.namespace(), dtype, weight.shape[0]
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
