"""The stem on a CPU: a folded convolution and its 3x3/2 max-pool. The classes work as in frozen/cpu/convolutions.py."""

import torch
import torch.nn.functional as F

from ...kernels import layout, library
from ..fold import fold


class Stem:
    """Convolution and max-pool in one pass over the image: the map between them is never written. float32, bfloat16."""

    name, any_layout, growth = "stem", True, 1.0

    def __init__(self, step, dtype):
        self._set(step, dtype)
        ops = library.namespace()
        self.operator, self.weight = ops.stem_conv_pool, ops.stem_pack(self.weight, None)

    def _set(self, step, dtype):
        """Sets what every stem has; the weight is the folded one [K, C, R, S]."""
        weight, self.bias = fold(step.conv, step.bn)
        conv = step.conv
        self.dtype, self.channels, self.weight = dtype, weight.shape[0], weight.contiguous()
        self.geometry = conv.kernel_size[0], conv.stride[0], conv.padding[0]

    def __call__(self, x):
        kernel, stride, padding = self.geometry
        pixels = ((size + 2 * padding - kernel) // stride for size in x.shape[2:])  # size of the convolution, minus 1
        shape = (x.shape[0], self.channels, *(p // 2 + 1 for p in pixels))
        out = torch.empty(shape, dtype=self.dtype, device="cpu", memory_format=layout.CHANNELS_LAST)
        self.operator(x, self.weight, self.bias, out, *self.geometry)
        return out

    @staticmethod
    def why_not(step, dtype):
        if library.why_absent() is not None:
            return library.why_absent()
        return why_not_geometry(step.conv, 16, "the fused stem is for square kernels over a few channels")


class ThenPool:
    """A convolution by the class `kind`, then torch's max-pool: the stem in two steps."""

    def __init__(self, kind):
        self.kind, self.name, self.growth = kind, f"{kind.name}, max_pool2d", kind.growth

    def why_not(self, step, dtype):
        return self.kind.why_not(step, dtype)

    def __call__(self, step, dtype):
        return _Pooled(self.kind(step, dtype))


class _Pooled:
    def __init__(self, conv):
        self.conv, self.weight, self.bias = conv, conv.weight, conv.bias

    def __call__(self, x):
        return F.max_pool2d(self.conv(x), 3, 2, 1)


def why_not_geometry(conv, largest, otherwise):
    """None, or why `conv` is no square convolution of few channels with a kernel up to `largest`."""
    square = all(a == b for a, b in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.kernel_size[0] <= largest and conv.in_channels <= 4
    if not square or not plain:
        return otherwise
    return None if conv.padding[0] < conv.kernel_size[0] else "the padding is as wide as the kernel"
