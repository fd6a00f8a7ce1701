"""relu(bn(conv(x, weight))) and bn2(conv(x, weight2)): the first convolution of a block and its projection.

Both read x, so a GPU may compute them in one launch. Evaluation without gradients only; everything else is `conv_bn_relu`
twice. The projection has no ReLU and pads nothing, as in every ResNet.
"""

import torch

from .. import dispatch
from ..kernels import layout
from .conv_bn_relu import conv_bn_relu
from .convolution.op import only_values, out_format, out_shape, pick
from .convolution.op import run as run_conv
from .define import call, define


def _one_launch(x, weight, stride, padding, dilation):
    """The backend that takes both convolutions in one launch, or None."""
    choice, _ = pick("conv_bn_relu_pair", x, weight, None, stride, padding, dilation, 1)
    return choice if choice.backend in dispatch.TILED else None  # the others have no kernel for both


def _run(
    x, weight, mean, var, bn_weight, bn_bias, stride, padding, dilation, eps,
    weight2, mean2, var2, bn_weight2, bn_bias2, stride2, eps2,
):  # fmt: skip
    norm, norm2 = (mean, var, bn_weight, bn_bias), (mean2, var2, bn_weight2, bn_bias2)
    choice = _one_launch(x, weight, stride, padding, dilation)
    if choice is None:
        return (
            run_conv(x, weight, *norm, None, stride, padding, dilation, 1, eps, True),
            run_conv(x, weight2, *norm2, None, stride2, (0, 0), (1, 1), 1, eps2, False),
        )
    dispatch.note("conv_bn_relu_pair", x, choice)
    outs = _empty(x, weight, stride, padding, dilation, weight2, stride2)
    weight, weight2 = (layout.in_format(w, layout.CHANNELS_LAST) for w in (weight, weight2))
    kernel = dispatch.kernel(choice, "conv_bn_relu_pair", "conv_bn_relu_pair")
    kernel(
        x, weight, *norm, outs[0], stride, padding, dilation, eps, weight2, *norm2, outs[1], stride2, [0, 0], eps2
    )  # fmt: skip
    return outs


def _empty(x, weight, stride, padding, dilation, weight2, stride2):
    shapes = (
        out_shape(x.shape, weight.shape, stride, padding, dilation),
        out_shape(x.shape, weight2.shape, stride2, (0, 0), (1, 1)),
    )
    return tuple(
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=out_format(x, w))
        for shape, w in zip(shapes, (weight, weight2), strict=True)
    )


def _fake(
    x, weight, mean, var, bn_weight, bn_bias, stride, padding, dilation, eps,
    weight2, mean2, var2, bn_weight2, bn_bias2, stride2, eps2,
):  # fmt: skip
    return _empty(x, weight, stride, padding, dilation, weight2, stride2)


define(
    "conv_bn_relu_pair(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias,"
    " int[] stride, int[] padding, int[] dilation, float eps, Tensor weight2, Tensor mean2, Tensor var2,"
    " Tensor? bn_weight2, Tensor? bn_bias2, int[] stride2, float eps2) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def conv_bn_relu_pair(x, weight, norm, weight2, norm2, *, stride, padding, dilation, eps, stride2, eps2):
    """(conv_bn_relu(x, weight, *norm, ...), conv_bn_relu(x, weight2, *norm2, stride=stride2, relu=False)), in evaluation.

    norm, norm2: bn_weight, bn_bias, running_mean, running_var; everything else as in `conv_bn_relu`. One launch where a
    backend has a kernel for both, no gradient is wanted, no autocast and no compiler are active.
    """
    statistics, statistics2 = (*norm[2:], *norm[:2]), (*norm2[2:], *norm2[:2])
    both = only_values(x, weight, statistics, stride, padding, dilation, eps)
    both = both and only_values(x, weight2, statistics2, stride2, (0, 0), (1, 1), eps2)
    if both and _one_launch(x, weight, stride, padding, dilation) is not None:
        arguments = x, weight, *statistics, stride, padding, dilation, eps, weight2, *statistics2, stride2, eps2
        return call(torch.ops.resnet_fused.conv_bn_relu_pair, _run, *arguments)
    return (
        conv_bn_relu(x, weight, *norm, stride=stride, padding=padding, dilation=dilation, eps=eps),
        conv_bn_relu(x, weight2, *norm2, stride=stride2, eps=eps2, relu=False),
    )
