"""The gradients of a convolution: each by a fused kernel where one was chosen, else by torch. A kernel that returns
False has found values for which its result is wrong, and torch computes that gradient again."""

import torch

from ... import dispatch
from ...kernels import layout, torch_convolution
from ...kernels.shapes import Convolution


def conv_gradients(grad, x, weight, stride, padding, dilation, groups, want_x, want_weight):
    """(grad_x, grad_weight), None where not wanted. The gradient of the weight has the weight's strides.

    grad, x: in the format of the convolution's output.
    """
    geometry = *map(tuple, (stride, padding, dilation)), groups
    grad_x = _input_grad(grad, x, weight, geometry) if want_x else None
    grad_weight = _weight_grad(grad, x, weight, geometry) if want_weight else None
    left = [want_x and grad_x is None, want_weight and grad_weight is None]
    if any(left):
        torch_x, torch_weight = torch_convolution.gradients(grad, x, weight, stride, padding, dilation, groups, left)
        grad_x = torch_x if left[0] else grad_x
        # Distributed training lays gradients over buckets in the strides of the weights. torch's own gradient of a 1x1
        # weight has other strides.
        if left[1]:
            same = torch_weight.stride() == weight.stride()
            grad_weight = torch_weight if same else torch.empty_like(weight).copy_(torch_weight)
    return grad_x, grad_weight


def _input_grad(grad, x, weight, geometry):
    """The gradient of x by a fused kernel, or None where torch computes it."""
    k, c, r, s = weight.shape
    convolution = Convolution(grad.shape, (c, k, r, s), grad.dtype, *geometry)
    choice = dispatch.choose_conv_input_grad(grad, weight, convolution)
    kernel = dispatch.kernel(choice, "conv_input_grad")
    # A kernel does not compute a larger map from one pixel: the pixel is channels_last in every network, the map is
    # not.
    if kernel is None or not layout.is_channels_last(x):
        return None
    grad_x = torch.empty_like(x, memory_format=layout.CHANNELS_LAST)
    return None if kernel(grad, weight, grad_x, convolution) is False else grad_x


def _weight_grad(grad, x, weight, geometry):
    """The gradient of the weight by a fused kernel, or None where torch computes it."""
    convolution = Convolution(x.shape, weight.shape, grad.dtype, *geometry)
    kernel = dispatch.kernel(dispatch.choose_conv_weight_grad(grad, x, convolution), "conv_weight_grad")
    if kernel is None or not layout.is_channels_last(x):
        return None
    grad_weight = torch.empty_like(weight)
    return None if kernel(grad, x, grad_weight, convolution) is False else grad_weight
