"""Folded convolutions by their direct sum, on vectors of this CPU: any kernel, stride, padding and dilation, one group.

oneDNN's are as fast or faster; these can run inside of a whole network's one call (frozen/cpu/one_call.py). Classes as in
frozen/cpu/convolutions.py.
"""

import torch

from ...kernels import layout, library
from ..fold import fold


class Direct:
    """A convolution with its shift, residual and ReLU; float32, bfloat16."""

    name, unit = "direct", "direct"

    def __init__(self, site, dtype):
        weight, self.bias = fold(site.conv, site.bn)
        operators = library.namespace()
        self.weight = getattr(operators, f"{self.unit}_pack")(weight.to(dtype).contiguous())
        self.operator = getattr(operators, f"{self.unit}_conv")
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
        self.operator(x, self.weight, self.bias, residual, out, *self.arguments, self.relu)
        return out

    @staticmethod
    def why_not(site, dtype):
        if library.why_absent() is not None:
            return library.why_absent()
        if site.conv.groups != 1:
            return "the direct kernels are for convolutions of one group"
        return None if is_square(site.conv) else "stride, padding and dilation must be square"


def is_square(conv):
    return not isinstance(conv.padding, str) and all(a == b for a, b in (conv.stride, conv.padding, conv.dilation))
