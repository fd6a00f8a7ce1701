"""relu(batch_norm(conv2d(x, weight)) [+ residual]).

Evaluation is one op. The kernel's float32 epilogue computes scale = bn_weight / sqrt(running_var + eps) and shift =
bn_bias - running_mean * scale from the live tensors, and relu(acc * scale + shift [+ residual]). No value derived from
the weights is kept. Training needs the statistics of the convolution's output first: torch's convolution runs, then the
fused `bn_relu`.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import layout
from ..kernels.epilogue import NONE, RELU
from ..kernels.shapes import out_shape
from ..kernels.torch_convolution import convolve_in_autocast
from .bn_relu import bn_relu
from .bn_relu import reference as bn_relu_reference
from .convolution.op import run
from .define import adds, call, check, why_not


def reference(
    x,
    weight,
    bn_weight,
    bn_bias,
    running_mean,
    running_var,
    residual=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    training=False,
    momentum=0.1,
    eps=1e-5,
    relu=True,
):
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    return bn_relu_reference(
        z, bn_weight, bn_bias, running_mean, running_var, residual,
        training=training, momentum=momentum, eps=eps, relu=relu,
    )  # fmt: skip


def _pair(value, name):
    if isinstance(value, int):
        return (value, value)
    value = tuple(value)
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, not {value}")
    return value


def geometry(x, weight, stride, padding, dilation, groups):
    """The shape of the result, or None where the op does not take a convolution of these shapes."""
    if len(x) != 4 or len(weight) != 4 or groups < 1 or x[1] != weight[1] * groups or weight[0] % groups:
        return None
    if min(padding) < 0 or min(stride) < 1 or min(dilation) < 1:
        return None
    shape = out_shape(x, weight, stride, padding, dilation)
    return shape if min(shape[2:]) >= 1 else None


# Used outside of compilers, whose symbolic sizes a cache cannot hold. It saves 5 us of 75 per op (measured: Intel Xeon,
# 2026-11-24).
_remembered_geometry = functools.lru_cache(maxsize=4096)(geometry)


def conv_bn_relu(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(conv2d(x, weight, stride, padding, dilation, groups)) [+ residual]).

    Args:
        x: [N, C, H, W]; float32, float16, bfloat16; channels_last is fastest and is kept.
        weight: [K, C / groups, R, S]; channels_last (KRSC) saves the CUDA kernels a copy.
        bn_weight, bn_bias, running_mean, running_var: [K]; see `bn_relu`.
        residual: [N, K, P, Q], added before the ReLU; or what broadcasts to it, or a number (by torch's own operators).
        stride, padding, dilation: an int or a pair.
        training: normalise with the statistics of this batch (torch's convolution, then the fused `bn_relu`); also used
            when `bn_weight` wants a gradient, which needs the convolution's output.
        relu: False leaves the ReLU out (a projection shortcut).

    Under autocast x and weight are cast as for torch's convolution; batch norm's parameters stay as they are.

    Returns:
        [N, K, P, Q] in the dtype of the convolution's input; channels_last if `x` or `weight` is.

    Raises:
        RuntimeError: shapes or dtypes that torch would refuse.
        ValueError: fewer than two values per channel in training.
        TypeError: x is no tensor, eps no number, residual neither.
        Nothing has changed then, the running statistics included.
    """
    check("conv_bn_relu", x, eps)
    stride, padding, dilation = _pair(stride, "stride"), _pair(padding, "padding"), _pair(dilation, "dilation")
    wants_bn_weight = torch.is_grad_enabled() and bn_weight is not None and bn_weight.requires_grad
    if training or wants_bn_weight or running_mean is None or running_var is None:
        z = convolve_in_autocast(x, weight, stride, padding, dilation, groups)
        return bn_relu(
            z, bn_weight, bn_bias, running_mean, running_var, residual, training=training, momentum=momentum, eps=eps,
            relu=relu, num_batches_tracked=num_batches_tracked,
        )  # fmt: skip
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x = x.to(low)
        weight = layout.lowered(weight, low, x)
    shape_of = geometry if torch.compiler.is_compiling() else _remembered_geometry
    shape = shape_of(x.shape, weight.shape, stride, padding, dilation, groups)
    if (
        shape is None
        or eps < 0.0
        or weight.dtype != x.dtype
        or weight.device != x.device
        or not (residual is None or adds(residual, shape, x))
        or not (_takes(running_mean, x, shape) and _takes(running_var, x, shape))
        or not (_takes(bn_weight, x, shape) and _takes(bn_bias, x, shape))
        or why_not(x)
    ):
        return reference(
            x, weight, bn_weight, bn_bias, running_mean, running_var, residual,
            stride=stride, padding=padding, dilation=dilation, groups=groups, momentum=0.0, eps=eps, relu=relu,
        )  # fmt: skip
    return call(
        torch.ops.resnet_fused.conv_bn_relu, run,
        x, weight, running_mean, running_var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps,
        RELU if relu else NONE,
    )  # fmt: skip


def _takes(parameter, x, shape):
    """Whether the op takes this vector. Where the op does not, torch accepts or refuses it with its own message."""
    return parameter is None or (
        parameter.shape == shape[1:2]
        and (parameter.dtype == x.dtype or parameter.dtype == torch.float32)
        and parameter.device == x.device
    )
