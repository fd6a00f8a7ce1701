"""The op resnet_fused::conv_bn_relu (evaluation) and its backward: implementation, fake, autograd."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ... import dispatch
from ...kernels import layout
from ...kernels.epilogue import NONE, RELU, Epilogue, Norm, saves_output
from ...kernels.shapes import Convolution, convolution_of, out_shape
from ...kernels.torch_convolution import convolve
from ..bn_relu import apply, backward_apply, sums
from ..define import LIB, by_torch, define, why_not
from .gradients import conv_gradients


def only_values(x, weight, parameters, stride, padding, dilation, eps):
    """Whether a caller wants only the values of a convolution with batch norm (one group, running statistics), eagerly,
    in one dtype, and of tensors that an op without gradient takes. parameters: mean, var, weight and bias of the norm."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type) or why_not(x):
        return False
    tensors = [t for t in (weight, *parameters) if t is not None]
    if parameters[0] is None or parameters[1] is None:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors)):
        return False
    if x.dim() != 4 or weight.dim() != 4 or weight.dtype != x.dtype or any(t.device != x.device for t in tensors):
        return False
    if x.shape[1] != weight.shape[1] or x.numel() == 0 or eps < 0.0 or min(*stride, *dilation) < 1 or min(padding) < 0:
        return False
    if min(out_shape(x.shape, weight.shape, stride, padding, dilation)) < 1:
        return False
    return all(p.shape == weight.shape[:1] and p.dtype in (x.dtype, torch.float32) for p in tensors[1:])


class _Chosen(NamedTuple):
    memory_format: torch.memory_format
    convolution: Convolution
    shape: tuple  # of the result
    kernel: Callable | None  # the launcher; None: torch's convolution, then a pass


_remembered = dispatch.Remembered()  # {shapes, strides, dtypes and numbers: _Chosen}


def _chosen(x, weight, residual, activation, *geometry):
    memory_format = layout.result_format(x, weight)
    x, residual = layout.in_format(x, memory_format), layout.in_format(residual, memory_format)
    convolution = convolution_of(x, weight, *geometry)
    choice = dispatch.choose("conv_bn_relu", x, weight, residual, convolution=convolution, activation=activation)
    kernel = dispatch.kernel(choice, "conv_bn_relu")
    found = _Chosen(memory_format, convolution, convolution.out_shape, kernel)
    return found, choice.backend != dispatch.EAGER.name  # STRICT mode must see a fallback


def _remembered_choice(x, weight, residual, activation, stride, padding, dilation, groups):
    """What `_chosen` finds, remembered: that takes 3 us instead of 10."""
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    if dispatch.observed():
        return _chosen(x, weight, residual, activation, *geometry)[0]
    answers, other = _remembered.answers(x.device, x.dtype), residual is None or residual.dtype
    question = x.shape, x.stride(), weight.shape, weight.stride(), weight.dtype, other, activation, geometry
    if (found := answers.get(question)) is None:
        found, lasts = _chosen(x, weight, residual, activation, *geometry)
        if lasts:
            answers[question] = found
    return found


def run(x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, activation):
    memory_format, convolution, shape, kernel = _remembered_choice(
        x, weight, residual, activation, stride, padding, dilation, groups
    )
    x, residual = layout.in_format(x, memory_format), layout.in_format(residual, memory_format)
    epilogue = Epilogue(Norm(mean, var, None, bn_weight, bn_bias, eps), residual, activation)
    if kernel is not None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        if kernel(x, weight, epilogue, out, convolution) is not False:
            return out
        # The direct sum puts a NaN or an infinity where torch has it.
        again = dispatch.Choice(dispatch.TORCH.name, "a value was not finite: again, by the direct sum")
        dispatch.note("conv_bn_relu", x, again)
    z = layout.in_format(_convolution(x, weight, stride, padding, dilation, groups), memory_format)
    return apply(z, epilogue, z)


def _convolution(x, weight, stride, padding, dilation, groups):
    """torch's convolution. On a CPU torch reorders contiguous weights for a channels_last input on a slow path (2.9
    instead of 2.1 ms for 512 channels at 7x7, one thread of an Intel Xeon, 2026-11-24). Where the weights are larger
    than the input, the input is reordered instead."""
    if x.device.type == "cpu" and weight.numel() > 8 * x.numel() and weight.is_contiguous():
        x = x.contiguous()
    return convolve(x, weight, stride, padding, dilation, groups)


def _fake(x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, activation):
    shape = out_shape(x.shape, weight.shape, stride, padding, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.result_format(x, weight))


define(
    "conv_bn_relu(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, Tensor? residual,"
    " int[] stride, int[] padding, int[] dilation, SymInt groups, float eps, int activation) -> Tensor",
    run,
    _fake,
)


def _empty(like, wanted):
    return torch.empty_like(like) if wanted else like.new_empty(0)


def _run_backward(
    grad, x, weight, out, var, bn_weight, stride, padding, dilation, groups, eps, want_x, want_weight, want_bias, want_residual
):  # fmt: skip
    shape = out_shape(x.shape, weight.shape, stride, padding, dilation)
    memory_format = layout.result_format(x, weight)
    grad, out = layout.in_format(grad, memory_format), layout.in_format(out, memory_format)
    activation = NONE if out is None else RELU
    none = grad.new_empty(0)
    grad_bias = sums(grad, None, out, None, activation)[0] if want_bias else none.float()
    wants_conv = want_x or want_weight
    like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)
    grad_z, grad_residual = _empty(like, wants_conv), _empty(like, want_residual)
    if wants_conv or want_residual:
        backward_apply(
            grad, None, out, Norm(None, var, None, bn_weight, None, eps), None, None,
            grad_z if wants_conv else None, grad_residual if want_residual else None, activation,
        )  # fmt: skip
    dense = layout.in_format(x, memory_format)
    grad_x, grad_weight = conv_gradients(
        grad_z, dense, weight, stride, padding, dilation, groups, want_x, want_weight
    )  # fmt: skip
    if want_x and grad_x.stride() != x.stride():
        grad_x = torch.empty_like(x).copy_(grad_x)
    return grad_x if want_x else none, grad_weight if want_weight else none, grad_bias, grad_residual


def _fake_backward(
    grad, x, weight, out, var, bn_weight, stride, padding, dilation, groups, eps, want_x, want_weight, want_bias, want_residual
):  # fmt: skip
    shape = out_shape(x.shape, weight.shape, stride, padding, dilation)
    like = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.result_format(x, weight))
    bias = torch.empty(weight.shape[0] if want_bias else 0, dtype=torch.float32, device=x.device)
    return _empty(x, want_x), _empty(weight, want_weight), bias, _empty(like, want_residual)


define(
    "conv_bn_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor? out, Tensor var, Tensor? bn_weight, int[] stride,"
    " int[] padding, int[] dilation, SymInt groups, float eps, bool want_x, bool want_weight, bool want_bias,"
    " bool want_residual) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _run_backward,
    _fake_backward,
)


def _differentiable_backward(
    grad, x, weight, out, var, bn_weight, stride, padding, dilation, groups, eps, want_x, want_weight, want_bias, want_residual
):  # fmt: skip
    grad = grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
    scale = torch.rsqrt(var.float() + eps)
    scale = scale if bn_weight is None else scale * bn_weight.float()
    grad_z = (grad.float() * scale.view(1, -1, 1, 1)).to(grad.dtype)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_z, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [want_x, want_weight, False]
    )
    return grad_x, grad_weight, grad.float().sum((0, 2, 3)), grad


def _setup(ctx, inputs, output):
    x, weight, _, var, bn_weight, bn_bias, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.eps, activation = (
        inputs
    )
    ctx.bias_dtype = None if bn_bias is None else bn_bias.dtype
    ctx.save_for_backward(x, weight, var, bn_weight, output if saves_output(activation) else None)


def _backward(ctx, grad):
    x, weight, var, bn_weight, out = ctx.saved_tensors
    needs = ctx.needs_input_grad
    want_x, want_weight, want_bias, want_residual = needs[0], needs[1], needs[5], needs[6]
    run = _differentiable_backward if by_torch(grad) else torch.ops.resnet_fused.conv_bn_relu_backward
    grad_x, grad_weight, grad_bias, grad_residual = run(
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
