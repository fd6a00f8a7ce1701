"""The launchers of the strip convolution in CUDA (csrc/cuda/hopper/strip/strip.cuh), and the convolutions that it
takes: 3x3, stride 1, 64 channels in and out, as in ResNet's first layer."""

import functools

import torch

from ... import cuda, library
from ...backend import Backend, Kernels
from ..plane.cuda import nhwc
from ..plane.schedule import dense, why_not

CHANNELS = 64
SUITS = 8  # with fewer images a part of every product is empty


def refusal(op, convolution):
    """Why the kernel cannot run a `shapes.Convolution`, or None."""
    x, weight, dtype, stride, padding, dilation, groups = convolution
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


def suits(op, convolution):
    """Whether the kernel is worth measuring."""
    return convolution.x[0] >= SUITS


def check(op, convolution):
    """Raises ValueError where the kernel cannot run."""
    if (why := refusal(op, convolution)) is not None:
        raise ValueError(why)


def conv_bn_relu(library, x, weight, epilogue, out, convolution, config=None):
    """Signature as in kernels/cuda.py. Raises ValueError where `refusal` refuses. The kernel has one configuration."""
    check("conv_bn_relu", convolution)
    x, weight, residual = map(dense, (x, nhwc(weight), epilogue.residual))
    mean, var, _, bn_weight, bn_bias, eps = epilogue.norm
    library.conv_strip(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, *convolution.geometry, eps, epilogue.activation
    )


def conv_input_grad(library, grad, weight, out, convolution, config=None):
    """out [N, 64, H, W] = the gradient of a convolution's input; grad [N, 64, H, W], weight [64, 64, 3, 3], all
    channels_last.

    Every call copies the weight to [C, R, S, K], 74 kB. Raises ValueError where the kernel cannot run.
    """
    check("conv_input_grad", convolution)
    library.conv_strip_gradient(dense(grad), nhwc(weight.transpose(0, 1)), out)


def kernels(namespace):
    """{op: launcher} by the ops of the library that `namespace()` returns."""
    ops = {"conv_bn_relu": conv_bn_relu, "conv_input_grad": conv_input_grad}
    return Kernels(ops, lambda op: functools.partial(ops[op], namespace()))


BACKEND = Backend(
    "cuda_strip",
    "cuda",
    why_not,
    kernels(library.namespace),
    refusal,
    suits,
    otherwise=cuda.BACKEND.name,
    proves=True,
)
