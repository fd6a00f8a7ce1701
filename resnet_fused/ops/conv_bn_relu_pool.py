"""max_pool2d(relu(batch_norm(conv2d(x, weight))), 3, stride 2, padding 1): a stem, whose largest map is never written.

The op is for evaluation without gradients; in all other cases `conv_bn_relu` and torch's pooling run.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..kernels import layout
from ..kernels.epilogue import RELU, Epilogue, Norm
from ..kernels.shapes import convolution_of, pooled_shape
from .conv_bn_relu import conv_bn_relu
from .convolution.op import only_values
from .convolution.op import run as run_conv
from .define import call, check, define


def reference(x, weight, bn_weight, bn_bias, running_mean, running_var, *, stride, padding, eps=1e-5):
    z = F.conv2d(x, weight, None, stride, padding)
    return F.max_pool2d(torch.relu(F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, eps=eps)), 3, 2, 1)


def _choice(x, weight, convolution):
    """The choice of the backend that has a kernel for the whole stem, or None."""
    choice = dispatch.picked("conv_bn_relu_pool", x, weight, None, convolution=convolution)
    return choice if dispatch.kernel(choice, "conv_bn_relu_pool") is not None else None


def _empty(x, convolution):
    shape = pooled_shape(convolution.out_shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)


def _run(x, weight, mean, var, bn_weight, bn_bias, stride, padding, eps):
    convolution = convolution_of(x, weight, stride, padding, (1, 1), 1)
    out, choice = _empty(x, convolution), _choice(x, weight, convolution)
    if choice is not None:
        epilogue = Epilogue(Norm(mean, var, None, bn_weight, bn_bias, eps))
        if dispatch.kernel(choice, "conv_bn_relu_pool")(x, weight, epilogue, out, convolution) is not False:
            dispatch.note("conv_bn_relu_pool", x, choice)
            return out
    mapped = run_conv(x, weight, mean, var, bn_weight, bn_bias, None, *convolution.geometry, eps, RELU)
    return out.copy_(F.max_pool2d(mapped, 3, 2, 1))


def _fake(x, weight, mean, var, bn_weight, bn_bias, stride, padding, eps):
    return _empty(x, convolution_of(x, weight, stride, padding, (1, 1), 1))


define(
    "conv_bn_relu_pool(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias,"
    " int[] stride, int[] padding, float eps) -> Tensor",
    _run,
    _fake,
)


def conv_bn_relu_pool(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    eps: float = 1e-5,
) -> Tensor:
    """max_pool2d(conv_bn_relu(x, weight, ..., stride=stride, padding=padding), 3, 2, 1), in evaluation.

    The arguments are those of `conv_bn_relu`. Where gradients are wanted, under autocast, in a compiler, and where no
    backend has a kernel for the whole stem, conv_bn_relu and torch's pooling run. Errors: as `conv_bn_relu`.
    """
    check("conv_bn_relu_pool", x, eps)
    parameters = running_mean, running_var, bn_weight, bn_bias
    if _takes(x, weight, parameters, stride, padding, eps):
        arguments = x, weight, *parameters, stride, padding, eps
        return call(torch.ops.resnet_fused.conv_bn_relu_pool, _run, *arguments)
    out = conv_bn_relu(
        x, weight, bn_weight, bn_bias, running_mean, running_var, stride=stride, padding=padding, eps=eps
    )
    return F.max_pool2d(out, 3, 2, 1)


def _takes(x, weight, parameters, stride, padding, eps):
    if not only_values(x, weight, parameters, stride, padding, (1, 1), eps):
        return False
    # Wider filters, and more channels than an image has, were never measured, and the CUDA kernel's shared memory has
    # limits.
    if weight.shape[1] > 4 or max(weight.shape[2:]) > 7:
        return False
    return _choice(x, weight, convolution_of(x, weight, stride, padding, (1, 1), 1)) is not None
