"""relu(bn(conv(x, weight))) and bn2(conv(x, weight2)): the first convolution of a block and its projection.

Both convolutions read x, so a GPU may compute them in one launch. The op is for evaluation without gradients; in all
other cases `conv_bn_relu` runs twice. The projection has no ReLU and no padding, as in every ResNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from ..kernels import layout
from ..kernels.epilogue import NONE, RELU, Norm
from ..kernels.shapes import convolution_of
from .conv_bn_relu import conv_bn_relu
from .convolution.op import only_values
from .convolution.op import run as run_conv
from .define import call, check, define


def _one_launch(x, weight, first, weight2, second):
    """The choice of the backend that takes both convolutions in one launch, or None."""
    choice = dispatch.picked("conv_bn_relu_pair", x, weight, None, convolution=first)
    if dispatch.kernel(choice, "conv_bn_relu_pair") is None:
        return None
    return choice if layout.gives_channels_last(x, weight2, second.out_shape) else None


def _run(
    x, weight, mean, var, bn_weight, bn_bias, stride, padding, dilation, eps,
    weight2, mean2, var2, bn_weight2, bn_bias2, stride2, eps2,
):  # fmt: skip
    first = convolution_of(x, weight, stride, padding, dilation, 1)
    second = convolution_of(x, weight2, stride2, (0, 0), (1, 1), 1)
    choice = _one_launch(x, weight, first, weight2, second)
    if choice is None:
        return (
            run_conv(x, weight, mean, var, bn_weight, bn_bias, None, *first.geometry, eps, RELU),
            run_conv(x, weight2, mean2, var2, bn_weight2, bn_bias2, None, *second.geometry, eps2, NONE),
        )
    dispatch.note("conv_bn_relu_pair", x, choice)
    out, out2 = _empty(x, weight, first), _empty(x, weight2, second)
    norm, norm2 = Norm(mean, var, None, bn_weight, bn_bias, eps), Norm(mean2, var2, None, bn_weight2, bn_bias2, eps2)
    dispatch.kernel(choice, "conv_bn_relu_pair")(x, weight, norm, out, first, weight2, norm2, out2, second)
    return out, out2


def _empty(x, weight, convolution):
    memory_format = layout.result_format(x, weight)
    return torch.empty(convolution.out_shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _fake(
    x, weight, mean, var, bn_weight, bn_bias, stride, padding, dilation, eps,
    weight2, mean2, var2, bn_weight2, bn_bias2, stride2, eps2,
):  # fmt: skip
    first = convolution_of(x, weight, stride, padding, dilation, 1)
    second = convolution_of(x, weight2, stride2, (0, 0), (1, 1), 1)
    return _empty(x, weight, first), _empty(x, weight2, second)


define(
    "conv_bn_relu_pair(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias,"
    " int[] stride, int[] padding, int[] dilation, float eps, Tensor weight2, Tensor mean2, Tensor var2,"
    " Tensor? bn_weight2, Tensor? bn_bias2, int[] stride2, float eps2) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def conv_bn_relu_pair(
    x: Tensor,
    weight: Tensor,
    norm: Sequence[Tensor | None],
    weight2: Tensor,
    norm2: Sequence[Tensor | None],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    eps: float,
    stride2: Sequence[int],
    eps2: float,
) -> tuple[Tensor, Tensor]:
    """(conv_bn_relu(x, weight, *norm, ...), conv_bn_relu(x, weight2, *norm2, stride=stride2, relu=False)), in evaluation.

    norm, norm2: bn_weight, bn_bias, running_mean, running_var; everything else as in `conv_bn_relu`. One launch where a
    backend has a kernel for both, no gradient is wanted, no autocast and no compiler are active. Errors: as `conv_bn_relu`.
    """
    check("conv_bn_relu_pair", x, eps)
    check("conv_bn_relu_pair", x, eps2)
    statistics, statistics2 = (*norm[2:], *norm[:2]), (*norm2[2:], *norm2[:2])
    both = only_values(x, weight, statistics, stride, padding, dilation, eps)
    both = both and only_values(x, weight2, statistics2, stride2, (0, 0), (1, 1), eps2)
    if both and _one_launch(
        x, weight, convolution_of(x, weight, stride, padding, dilation, 1),
        weight2, convolution_of(x, weight2, stride2, (0, 0), (1, 1), 1),
    ) is not None:  # fmt: skip
        arguments = x, weight, *statistics, stride, padding, dilation, eps, weight2, *statistics2, stride2, eps2
        return call(torch.ops.resnet_fused.conv_bn_relu_pair, _run, *arguments)
    return (
        conv_bn_relu(x, weight, *norm, stride=stride, padding=padding, dilation=dilation, eps=eps),
        conv_bn_relu(x, weight2, *norm2, stride=stride2, eps=eps2, relu=False),
    )
