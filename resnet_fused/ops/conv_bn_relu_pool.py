"""max_pool2d(relu(batch_norm(conv2d(x, weight))), 3, stride 2, padding 1): a stem, whose largest map is never written.

Evaluation without gradients only; everything else is `conv_bn_relu` and torch's pooling.
"""

import torch
import torch.nn.functional as F

from .. import dispatch
from ..kernels import layout
from .conv_bn_relu import conv_bn_relu
from .convolution.op import only_values, out_shape, pick
from .convolution.op import run as run_conv
from .define import call, define


def reference(x, weight, bn_weight, bn_bias, running_mean, running_var, *, stride, padding, eps=1e-5):
    z = F.conv2d(x, weight, None, stride, padding)
    return F.max_pool2d(torch.relu(F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, eps=eps)), 3, 2, 1)


def _pooled(x, weight, stride, padding):
    n, k, p, q = out_shape(x.shape, weight.shape, stride, padding, (1, 1))
    return n, k, (p - 1) // 2 + 1, (q - 1) // 2 + 1


def _pick(x, weight, stride, padding):
    """The backend that has a kernel for all of it, or None."""
    choice, _ = pick("conv_bn_relu_pool", x, weight, None, stride, padding, (1, 1), 1)
    return None if choice.backend in ("torch", "eager", "triton") else choice


def _run(x, weight, mean, var, bn_weight, bn_bias, stride, padding, eps):
    shape = _pooled(x, weight, stride, padding)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
    choice = _pick(x, weight, stride, padding)
    if choice is not None and choice.backend != "native":
        dispatch.note("conv_bn_relu_pool", x, choice)
        kernel = dispatch.kernel(choice, "conv_bn_relu_pool", "conv_bn_relu_pool")
        weight = layout.in_format(weight, layout.CHANNELS_LAST)
        kernel(x, weight, mean, var, bn_weight, bn_bias, out, stride, padding, eps)
        return out
    if choice is not None:
        scale, shift = _scale_and_shift(mean, var, bn_weight, bn_bias, eps)
        # The CPU's kernel folds the scale into the weights; an infinite scale of a sum is no sum of infinite weights.
        if torch.isfinite(scale).all():
            dispatch.note("conv_bn_relu_pool", x, choice)
            packed = dispatch.kernel(choice, "conv_bn_relu_pool", "stem_pack")(weight.contiguous(), scale)
            kernel = dispatch.kernel(choice, "conv_bn_relu_pool", "stem_conv_pool")
            kernel(x, packed, shift, out, weight.shape[2], stride[0], padding[0])
            return out
    mapped = run_conv(x, weight, mean, var, bn_weight, bn_bias, None, stride, padding, (1, 1), 1, eps, True)
    return out.copy_(F.max_pool2d(mapped, 3, 2, 1))


def _scale_and_shift(mean, var, bn_weight, bn_bias, eps):
    """Of batch norm, computed in float64: two float32 vectors of a few dozen channels."""
    scale = (var.double() + eps).rsqrt_()
    if bn_weight is not None:
        scale *= bn_weight
    shift = -mean * scale
    if bn_bias is not None:
        shift += bn_bias
    return scale.float(), shift.float()


def _fake(x, weight, mean, var, bn_weight, bn_bias, stride, padding, eps):
    shape = _pooled(x, weight, stride, padding)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)


define(
    "conv_bn_relu_pool(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias,"
    " int[] stride, int[] padding, float eps) -> Tensor",
    _run,
    _fake,
)


def conv_bn_relu_pool(x, weight, bn_weight, bn_bias, running_mean, running_var, *, stride, padding, eps=1e-5):
    """max_pool2d(conv_bn_relu(x, weight, ..., stride=stride, padding=padding), 3, 2, 1), in evaluation.

    The arguments are those of `conv_bn_relu`. Where gradients are wanted, under autocast, in a compiler, and where no
    backend has a kernel for all of it, this is the composition itself.
    """
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
    # Wider filters or more channels than an image has: never measured, and the CUDA kernel's shared memory has limits.
    if weight.shape[1] > 4 or max(weight.shape[2:]) > 7:
        return False
    return _pick(x, weight, stride, padding) is not None
