"""Folded depthwise convolutions of 3x3 and 5x5 on vectors of this CPU, with their activation. The classes work as in
frozen/cpu/convolutions.py.

They run inside the one call of a stretch, where oneDNN's would each be a call of their own.
"""

import torch

from ...kernels import layout, library
from ...kernels.shapes import out_size
from ..fold import fold
from .pointwise import number_of


class Depthwise:
    """A convolution of one channel per group with its shift and activation; float32, bfloat16. Weights stay float32."""

    name, growth = "depthwise", 1.0

    def __init__(self, step, dtype):
        weight, self.bias = fold(step.conv, step.bn)
        self.weight = weight[:, 0].permute(1, 2, 0).contiguous()
        self.operator, self.function = library.namespace().depthwise_conv, number_of(step)
        conv = step.conv
        self.geometry = conv.kernel_size[0], conv.stride[0], conv.padding[0]

    def __call__(self, x):
        sizes = (out_size(size, *self.geometry, 1) for size in x.shape[2:])
        out = torch.empty(
            (*x.shape[:2], *sizes), dtype=x.dtype, device="cpu", memory_format=layout.CHANNELS_LAST
        )  # fmt: skip
        self.operator(x, self.weight, self.bias, out, *self.geometry[1:], self.function)
        return out

    @staticmethod
    def why_not(step, dtype):
        if library.why_absent() is not None:
            return library.why_absent()
        conv = step.conv
        if not conv.groups == conv.in_channels == conv.out_channels:
            return "the depthwise kernels are for convolutions of one channel per group"
        square = all(a == b for a, b in (conv.kernel_size, conv.stride, conv.padding)) and conv.dilation == (1, 1)
        if not square or conv.kernel_size[0] not in (3, 5) or conv.stride[0] not in (1, 2):
            return "the depthwise kernels are for 3x3 and 5x5, stride 1 or 2"
        return "the depthwise kernels add no residual" if step.adds or step.pool else None
