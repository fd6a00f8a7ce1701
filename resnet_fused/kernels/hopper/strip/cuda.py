"""The strip convolution in CUDA (csrc/cuda/hopper/strip/strip.cuh): 3x3, stride 1, 64 channels in and out, as in ResNet's first
layer. Which convolutions it takes, and its launcher.
"""

import torch

from ..plane import schedule as plane

CHANNELS = 64
SUITS = 8  # images below which part of every product is empty


def refusal(x, weight, dtype, stride, padding, dilation, groups):
    """Why the kernel cannot take x [N, C, H, W] and weight [K, C / groups, R, S] (shapes) in `dtype`, or None."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the strip kernel multiplies float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if groups != 1:
        return f"the strip kernel takes one group, not {groups}"
    for what, only, found in (
        ("input and output channels", CHANNELS, (x[1], weight[0])),
        ("a filter of size", 3, weight[2:]),
        ("stride", 1, stride),
        ("padding", 1, padding),
        ("dilation", 1, dilation),
    ):
        if tuple(found) != (only, only):
            return f"the strip kernel takes {what} {only}, not {max(found, key=lambda value: value != only)}"
    if x[0] * x[2] * (x[3] // 14 + 1) >= 2**28 or x[3] >= 2**28:
        return f"the strip kernel counts in 32 bits, too few for {tuple(x)}"
    return None


def suits(x, weight):
    """Whether the kernel is worth measuring on x [N, C, H, W] and a weight (shapes)."""
    return x[0] >= SUITS


def _refuse(x, weight, stride, padding, dilation, groups):
    if (why := refusal(x.shape, weight.shape, x.dtype, stride, padding, dilation, groups)) is not None:
        raise ValueError(why)


def conv_bn_relu(
    library, x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu
):
    """As kernels/conv_bn_relu.py, by the ops of `library`, for what `refusal` does not refuse (else a ValueError)."""
    _refuse(x, weight, stride, padding, dilation, groups)
    x, weight, residual = map(plane.dense, (x, weight, residual))
    library.conv_strip(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu
    )


def conv_input_grad(library, grad, weight, out, stride, padding, dilation, groups):
    """out [N, 64, H, W] = the gradient of a convolution's input; grad [N, 64, H, W], weight [64, 64, 3, 3], all
    channels_last.

    The weight is brought to [C, R, S, K] on every call: a copy of 74 kB. Raises ValueError for what the kernel cannot take.
    """
    turned = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    _refuse(grad, turned, stride, padding, dilation, groups)
    library.conv_strip_gradient(plane.dense(grad), turned, out)
