"""Folded convolutions by their direct sum, on vectors of this CPU: any kernel, stride, padding and dilation, one group.

oneDNN's convolutions are as fast or faster, but these can run inside the one call of a whole network
(frozen/cpu/one_call.py). The classes work as in frozen/cpu/convolutions.py.
"""

import torch

from ...kernels import layout, library
from ...kernels.shapes import out_size
from ..fold import fold
from .pointwise import number_of


class Direct:
    """A convolution with its shift, residual and activation; float32, bfloat16."""

    name, unit, growth = "direct", "direct", 1.0

    def __init__(self, step, dtype):
        weight, self.bias = fold(step.conv, step.bn)
        operators = library.namespace()
        self.weight = getattr(operators, f"{self.unit}_pack")(weight.to(dtype).contiguous())
        self.operator = getattr(operators, f"{self.unit}_conv")
        conv = step.conv
        self.channels, self.function = weight.shape[0], number_of(step)
        self.geometry = (*conv.kernel_size, conv.stride[0], conv.padding[0], conv.dilation[0])

    def __call__(self, x, residual=None):
        out = residual
        if out is None:
            kernel_h, kernel_w, *rest = self.geometry
            shape = (
                x.shape[0],
                self.channels,
                out_size(x.shape[2], kernel_h, *rest),
                out_size(x.shape[3], kernel_w, *rest),
            )
            out = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=layout.CHANNELS_LAST)
        self.operator(x, self.weight, self.bias, residual, out, *self.geometry, self.function)
        return out

    @staticmethod
    def why_not(step, dtype):
        if library.why_absent() is not None:
            return library.why_absent()
        if step.conv.groups != 1:
            return "the direct kernels are for convolutions of one group"
        conv = step.conv
        square = all(a == b for a, b in (conv.stride, conv.padding, conv.dilation))
        return None if square else "stride, padding and dilation must be square"
