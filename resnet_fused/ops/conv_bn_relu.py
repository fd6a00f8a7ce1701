"""relu(batch_norm(conv2d(x, weight)) [+ residual]).

Evaluation is one op: scale = bn_weight / sqrt(running_var + eps) and shift = bn_bias - running_mean * scale are taken from
the live tensors in the kernel's float32 epilogue, relu(acc * scale + shift [+ residual]); nothing derived from the weights
is ever kept. Training needs the statistics of the convolution's output first: torch's convolution, then the fused `bn_relu`.
"""

import functools

import torch
import torch.nn.functional as F

from .. import dispatch, layout
from ._library import LIB, call, define, left_to_torch
from .bn_relu import apply, backward_apply, bn_relu, sums
from .bn_relu import reference as bn_relu_reference


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


def out_shape(x, weight, stride, padding, dilation):
    """[N, K, P, Q] of conv2d; P = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1."""
    return _out_shape(x.shape, weight.shape, stride, padding, dilation)


def _out_shape(x, weight, stride, padding, dilation):
    spatial = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
    )
    return (x[0], weight[0], *spatial)


def _out_format(x, weight):
    """As torch's convolution: channels_last as soon as the input or the weight is."""
    if layout.nearest_format(x) is layout.CHANNELS_LAST or layout.nearest_format(weight) is layout.CHANNELS_LAST:
        return layout.CHANNELS_LAST
    return layout.CONTIGUOUS


def _run(x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, relu):
    memory_format = _out_format(x, weight)
    x, residual = layout.in_format(x, memory_format), layout.in_format(residual, memory_format)
    detail = (weight.shape, stride, padding, dilation, groups)
    choice = dispatch.choose("conv_bn_relu", x, weight, residual, detail=detail)
    if choice.backend in ("torch", "eager"):
        z = layout.in_format(F.conv2d(x, weight, None, stride, padding, dilation, groups), memory_format)
        return apply(z, mean, var, bn_weight, bn_bias, residual, z, eps, relu)
    shape = out_shape(x, weight, stride, padding, dilation)
    weight = layout.in_format(weight, memory_format)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    dispatch.kernel(choice, "conv_bn_relu", "conv_bn_relu")(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu
    )
    return out


def _fake(x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, relu):
    shape = out_shape(x, weight, stride, padding, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_out_format(x, weight))


define(
    "conv_bn_relu(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, Tensor? residual,"
    " int[] stride, int[] padding, int[] dilation, SymInt groups, float eps, bool relu) -> Tensor",
    _run,
    _fake,
)


def _empty(like, wanted):
    return torch.empty_like(like) if wanted else like.new_empty(0)


def _run_backward(
    grad, x, weight, out, var, bn_weight, stride, padding, dilation, groups, eps, want_x, want_weight, want_bias, want_residual
):  # fmt: skip
    shape = out_shape(x, weight, stride, padding, dilation)
    memory_format = _out_format(x, weight)
    grad, out = layout.in_format(grad, memory_format), layout.in_format(out, memory_format)
    relu = out is not None
    none = grad.new_empty(0)
    grad_bias = sums(grad, None, out, None, None, eps, relu, with_gx=False)[0] if want_bias else none.float()
    wants_conv = want_x or want_weight
    like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    grad_z, grad_residual = _empty(like, wants_conv), _empty(like, want_residual)
    if wants_conv or want_residual:
        backward_apply(
            grad, None, out, None, var, bn_weight, None, None,
            grad_z if wants_conv else None, grad_residual if want_residual else None, eps, relu,
        )  # fmt: skip
    grad_x, grad_weight = none, none
    if wants_conv:
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_z, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [want_x, want_weight, False]
        )
    grad_x = torch.empty_like(x).copy_(grad_x) if want_x else none
    grad_weight = torch.empty_like(weight).copy_(grad_weight) if want_weight else none
    return grad_x, grad_weight, grad_bias, grad_residual


def _fake_backward(
    grad, x, weight, out, var, bn_weight, stride, padding, dilation, groups, eps, want_x, want_weight, want_bias, want_residual
):  # fmt: skip
    shape = out_shape(x, weight, stride, padding, dilation)
    like = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_out_format(x, weight))
    bias = torch.empty(weight.shape[0] if want_bias else 0, dtype=torch.float32, device=x.device)
    return _empty(x, want_x), _empty(weight, want_weight), bias, _empty(like, want_residual)


define(
    "conv_bn_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor? out, Tensor var, Tensor? bn_weight, int[] stride,"
    " int[] padding, int[] dilation, SymInt groups, float eps, bool want_x, bool want_weight, bool want_bias,"
    " bool want_residual) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _run_backward,
    _fake_backward,
)


def _setup(ctx, inputs, output):
    x, weight, _, var, bn_weight, bn_bias, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.eps, relu = inputs
    ctx.bias_dtype = None if bn_bias is None else bn_bias.dtype
    ctx.save_for_backward(x, weight, var, bn_weight, output if relu else None)


def _backward(ctx, grad):
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "conv_bn_relu: no double backward with frozen batch norm; use resnet_fused.backend('eager') around the forward"
        )
    x, weight, var, bn_weight, out = ctx.saved_tensors
    needs = ctx.needs_input_grad
    want_x, want_weight, want_bias, want_residual = needs[0], needs[1], needs[5], needs[6]
    grad_x, grad_weight, grad_bias, grad_residual = torch.ops.resnet_fused.conv_bn_relu_backward(
        grad, x, weight, out, var, bn_weight, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.eps,
        want_x, want_weight, want_bias, want_residual,
    )  # fmt: skip
    grads = [None] * 13
    grads[0] = grad_x if want_x else None
    grads[1] = grad_weight if want_weight else None
    grads[5] = grad_bias.to(ctx.bias_dtype) if want_bias else None
    grads[6] = grad_residual if want_residual else None
    return tuple(grads)


torch.library.register_autograd("resnet_fused::conv_bn_relu", _backward, setup_context=_setup, lib=LIB)


def _pair(value, name):
    if isinstance(value, int):
        return (value, value)
    value = tuple(value)
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, not {value}")
    return value


def _geometry(x, weight, stride, padding, dilation, groups):
    """The shape of the result, or None where the op does not take a convolution of these shapes."""
    if len(x) != 4 or len(weight) != 4 or groups < 1 or x[1] != weight[1] * groups or weight[0] % groups:
        return None
    if min(padding) < 0 or min(stride) < 1 or min(dilation) < 1:
        return None
    shape = _out_shape(x, weight, stride, padding, dilation)
    return shape if min(shape[2:]) >= 1 else None


# Outside of compilers, whose symbolic sizes it cannot hold: 5 us of 75 per op on a CPU.
_remembered_geometry = functools.lru_cache(maxsize=4096)(_geometry)


def conv_bn_relu(
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
    num_batches_tracked=None,
):
    """relu(batch_norm(conv2d(x, weight, stride, padding, dilation, groups)) [+ residual]).

    Args:
        x: [N, C, H, W]; float32, float16, bfloat16; channels_last is fastest and is kept.
        weight: [K, C / groups, R, S]; channels_last (KRSC) saves the CUDA kernels a copy.
        bn_weight, bn_bias, running_mean, running_var: [K]; see `bn_relu`.
        residual: [N, K, P, Q], added before the ReLU.
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
    """
    stride, padding, dilation = _pair(stride, "stride"), _pair(padding, "padding"), _pair(dilation, "dilation")
    wants_bn_weight = torch.is_grad_enabled() and bn_weight is not None and bn_weight.requires_grad
    if training or wants_bn_weight or running_mean is None or running_var is None:
        z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
        return bn_relu(
            z, bn_weight, bn_bias, running_mean, running_var, residual, training=training, momentum=momentum, eps=eps,
            relu=relu, num_batches_tracked=num_batches_tracked,
        )  # fmt: skip
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x, weight = x.to(low), weight.to(low)
    geometry = _geometry if torch.compiler.is_compiling() else _remembered_geometry
    shape = geometry(x.shape, weight.shape, stride, padding, dilation, groups)
    if (
        shape is None
        or eps <= 0.0
        or weight.dtype != x.dtype
        or weight.device != x.device
        or (residual is not None and (residual.shape != shape or residual.dtype != x.dtype))
        or not (_fits(running_mean, x, shape) and _fits(running_var, x, shape))
        or not (_fits(bn_weight, x, shape) and _fits(bn_bias, x, shape))
        or left_to_torch(x)
    ):
        return reference(
            x, weight, bn_weight, bn_bias, running_mean, running_var, residual,
            stride=stride, padding=padding, dilation=dilation, groups=groups, momentum=0.0, eps=eps, relu=relu,
        )  # fmt: skip
    return call(
        torch.ops.resnet_fused.conv_bn_relu, _run,
        x, weight, running_mean, running_var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, relu,
    )  # fmt: skip


def _fits(parameter, x, shape):
    """Whether the op takes this vector; what it does not take, torch accepts or refuses in its own words."""
    return parameter is None or (
        parameter.shape == shape[1:2]
        and (parameter.dtype == x.dtype or parameter.dtype == torch.float32)
        and parameter.device == x.device
    )
