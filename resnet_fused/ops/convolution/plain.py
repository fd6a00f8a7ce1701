"""A convolution alone, as the ops of training run it: by a kernel for it where one was chosen, else by torch."""

import torch

from ... import dispatch
from ...kernels import layout, torch_convolution
from ...kernels.shapes import convolution_of


def convolve(x, weight, stride, padding, dilation, groups, choice=None):
    """conv2d(x, weight), in any layout. `choice`: that of `dispatch.choose_conv_stats`, where the caller has it."""
    convolution = convolution_of(x, weight, stride, padding, dilation, groups)
    if choice is None:
        choice = dispatch.picked("conv_stats", x, weight, convolution=convolution)
    kernel = dispatch.kernel(choice, "conv")
    if kernel is not None:
        z = torch.empty(convolution.out_shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
        # False: a value was not finite. The direct sum puts a NaN or an infinity where torch has it.
        if kernel(x, weight, z, convolution) is not False:
            return z
    return torch_convolution.convolve(x, weight, stride, padding, dilation, groups)
