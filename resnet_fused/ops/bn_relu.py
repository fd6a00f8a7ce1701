"""relu(batch_norm(x) [+ residual]) in one pass, with batch or running statistics.

Training is two ops: `bn_stats` reads x once, writes the batch statistics and updates the running ones; `bn_relu` applies
them, and its backward contains the derivative through the statistics. With g = grad where out > 0 (or NaN), M values per
channel and xhat = (x - mean) * invstd (Ioffe & Szegedy, arXiv:1502.03167, section 3):

    grad_bias = sum g          grad_weight = sum g * xhat          grad_residual = g
    grad_x = weight * invstd * (g - grad_bias / M - xhat * grad_weight / M)        batch statistics
    grad_x = weight * invstd * g                                                   running statistics
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..kernels import eager, layout
from ..kernels.epilogue import NONE, RELU, Epilogue, activate, norm_of, saves_output
from .define import LIB, adds, by_torch, call, cannot_be_saved, check, check_residual, define, why_not


def reference(
    x, weight, bias, running_mean, running_var, residual=None, *, training=False, momentum=0.1, eps=1e-5, relu=True
):
    out = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is not None:
        out = out.add_(residual)  # as in the network, the sum keeps the dtype of out
    return activate(out, RELU if relu else NONE)


def _run_stats(x, running_mean, running_var, num_batches_tracked, momentum, eps):
    mean = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    invstd = torch.empty_like(mean)
    if x.numel() == 0:  # as in eager, an empty batch does not change the running statistics
        return mean.zero_(), invstd.zero_()
    x = layout.in_format(x, layout.nearest_format(x))
    buffers = [b for b in (running_mean, running_var) if b is not None]
    choice = dispatch.choose("bn_stats", x)
    run = dispatch.kernel(choice, "bn_stats")
    run(x, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps)
    # The kernels write to the buffers without torch's knowledge. A backward that has saved them must notice.
    torch.autograd.graph.increment_version([b for b in buffers if not b.is_inference()])
    return mean, invstd


def _fake_stats(x, running_mean, running_var, num_batches_tracked, momentum, eps):
    mean = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    return mean, torch.empty_like(mean)


define(
    "bn_stats(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? num_batches_tracked, float momentum,"
    " float eps) -> (Tensor mean, Tensor invstd)",
    _run_stats,
    _fake_stats,
)


def apply(x, epilogue, out):
    """Writes epilogue(x) into `out`, which may be x. This pass allocates nothing, and conv_bn_relu uses it too."""
    choice = dispatch.choose("bn_relu", x, epilogue.residual)
    dispatch.kernel(choice, "bn_relu")(x, epilogue, out)
    return out


def _run(x, mean, var_or_invstd, weight, bias, residual, eps, batch_stats, activation):
    memory_format = layout.nearest_format(x)
    dense, residual = layout.in_format(x, memory_format), layout.in_format(residual, memory_format)
    out = torch.empty_like(dense)
    norm = norm_of(mean, var_or_invstd, weight, bias, None if batch_stats else eps)
    apply(dense, Epilogue(norm, residual, activation), out)
    return layout.as_result_of(out, x)


def _fake(x, mean, var_or_invstd, weight, bias, residual, eps, batch_stats, activation):
    channels = x.shape[1]
    for name, t in (("mean", mean), ("var", var_or_invstd), ("weight", weight), ("bias", bias)):
        torch._check(
            t is None or t.shape == (channels,),
            lambda name=name, t=t: f"bn_relu: {name} has shape {tuple(t.shape)}, but x has {channels} channels",
        )
    return torch.empty_like(x)


define(
    "bn_relu(Tensor x, Tensor mean, Tensor var_or_invstd, Tensor? weight, Tensor? bias, Tensor? residual, float eps,"
    " bool batch_stats, int activation) -> Tensor",
    _run,
    _fake,
)


def _empty(like, wanted):
    return torch.empty_like(like) if wanted else like.new_empty(0)


def sums(grad, x, out, norm, activation, grad2=None, masked=None):
    """(sum g, sum g * xhat) per channel in float32; without x the second sum is None. grad2: a second summand of grad.
    masked: receives g."""
    sum_g = torch.empty(grad.shape[1], dtype=torch.float32, device=grad.device)
    sum_gx = None if x is None else torch.empty_like(sum_g)
    choice = dispatch.choose("bn_relu_backward_reduce", grad, x, out)
    run = dispatch.kernel(choice, "bn_relu_backward_reduce")
    run(grad, x, out, norm, sum_g, sum_gx, activation, grad2, masked)
    return sum_g, sum_gx


def backward_apply(grad, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, grad2=None):
    choice = dispatch.choose("bn_relu_backward_apply", grad, x, out)
    run = dispatch.kernel(choice, "bn_relu_backward_apply")
    run(grad, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, grad2)


def _run_backward(grad, x, out, mean, var_or_invstd, weight, eps, activation, want_x, want_affine, want_residual):
    memory_format, original = layout.nearest_format(x), x
    grad, x, out = (layout.in_format(t, memory_format) for t in (grad, x, out))
    grad_x, grad_residual = _empty(x, want_x), _empty(x, want_residual)
    norm = norm_of(mean, var_or_invstd, weight, None, eps)
    sum_g = sum_gx = None
    if want_affine or (norm.of_batch and want_x):
        sum_g, sum_gx = sums(grad, x, out, norm, activation)
    if want_x or want_residual:
        backward_apply(
            grad, x, out, norm, sum_g, sum_gx,
            grad_x if want_x else None, grad_residual if want_residual else None, activation,
        )  # fmt: skip
    none = mean.new_empty(0, dtype=torch.float32)
    return (
        layout.as_result_of(grad_x, original) if want_x else grad_x,
        sum_gx if want_affine else none,
        sum_g if want_affine else none,
        layout.as_result_of(grad_residual, original) if want_residual else grad_residual,
    )


def _fake_backward(grad, x, out, mean, var_or_invstd, weight, eps, activation, want_x, want_affine, want_residual):
    channel = torch.empty(x.shape[1] if want_affine else 0, dtype=torch.float32, device=x.device)
    return _empty(x, want_x), channel, torch.empty_like(channel), _empty(x, want_residual)


define(
    "bn_relu_backward(Tensor grad, Tensor x, Tensor? out, Tensor mean, Tensor var_or_invstd, Tensor? weight, float? eps,"
    " int activation, bool want_x, bool want_affine, bool want_residual)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _run_backward,
    _fake_backward,
)


def _setup(ctx, inputs, output):
    x, mean, var_or_invstd, weight, bias, _, ctx.eps, ctx.batch_stats, ctx.activation = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, mean, var_or_invstd, weight, output if saves_output(ctx.activation) else None)


def _backward(ctx, grad):
    x, mean, var_or_invstd, weight, out = ctx.saved_tensors
    want_x, _, _, want_weight, want_bias, want_residual = ctx.needs_input_grad[:6]
    if by_torch(grad):
        grads = eager.differentiable_backward(grad, x, out, mean, var_or_invstd, weight, ctx.eps, ctx.batch_stats)
    else:
        eps = None if ctx.batch_stats else ctx.eps
        grads = torch.ops.resnet_fused.bn_relu_backward(
            grad, x, out, mean, var_or_invstd, weight, eps, ctx.activation, want_x, want_weight or want_bias,
            want_residual,
        )  # fmt: skip
    grad_x, grad_weight, grad_bias, grad_residual = grads
    return (
        grad_x if want_x else None,
        None,
        None,
        grad_weight.to(weight.dtype) if want_weight else None,
        grad_bias.to(ctx.bias_dtype) if want_bias else None,
        grad_residual if want_residual else None,
        None,
        None,
        None,
    )


torch.library.register_autograd("resnet_fused::bn_relu", _backward, setup_context=_setup, lib=LIB)


def bn_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(x) [+ residual]), with the arithmetic and the side effects of `torch.nn.functional.batch_norm`.

    Args:
        x: [N, C, H, W] (or [N, C, *]); float32, float16, bfloat16; any memory format (channels_last is kept).
        weight, bias: [C] or None; in the dtype of `x` or float32.
        running_mean, running_var: [C]; None is allowed with `training=True`, which updates them in place otherwise.
        residual: added before the ReLU; the shape of `x`, or broadcast to it, or a number (through torch's own operators).
        training: normalise with the statistics of this batch.
        momentum: share of the new statistics in the running ones; None: the average over all batches, in which case
            `num_batches_tracked` (an int64 scalar tensor, already counting this batch) is read on its device.
        relu: False leaves the ReLU out (the batch norm of a projection shortcut).

    Returns:
        A new tensor like `x`. For the backward x, the output and two [C] vectors are kept; no mask.

    Raises:
        ValueError: fewer than two values per channel in training, as torch does.
        RuntimeError: a shape or dtype that torch would refuse.
        TypeError: x is no tensor, eps no number, residual neither.
        Nothing has changed then, the running statistics included.
    """
    check("bn_relu", x, eps)
    left = (
        x.dim() < 2
        or x.dtype not in dispatch.DTYPES
        or not (residual is None or adds(residual, x.shape, x))
        or (not training and (running_mean is None or running_var is None))
        or (training and (running_mean is None) != (running_var is None))
        or eps < 0.0
        or (training and (eps == 0.0 or cannot_be_saved(x)))
        or any(t is not None and not _takes(t, x) for t in (weight, bias, running_mean, running_var))
    )
    if left or why_not(x):
        check_residual("bn_relu", x.shape, x, residual)
        if training and momentum is None:
            momentum = 0.0 if num_batches_tracked is None else 1.0 / float(num_batches_tracked)
        return reference(
            x, weight, bias, running_mean, running_var, residual,
            training=training, momentum=momentum, eps=eps, relu=relu,
        )  # fmt: skip
    activation = RELU if relu else NONE
    if not training:
        statistics = running_mean, running_var
        return call(
            torch.ops.resnet_fused.bn_relu, _run, x, *statistics, weight, bias, residual, eps, False, activation
        )
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    if momentum is None and num_batches_tracked is None:
        running_mean = running_var = None  # torch's factor is then 0, and nothing changes
    tracked = num_batches_tracked if momentum is None else None
    mean, invstd = call(
        torch.ops.resnet_fused.bn_stats,
        _run_stats,
        x.detach(),
        running_mean,
        running_var,
        tracked,
        0.0 if momentum is None else momentum,
        eps,
    )
    return call(torch.ops.resnet_fused.bn_relu, _run, x, mean, invstd, weight, bias, residual, eps, True, activation)


def _takes(parameter, x):
    """Whether a kernel can take this per-channel vector. Where no kernel can, torch accepts or refuses it."""
    return (
        parameter.shape == x.shape[1:2]
        and parameter.device == x.device
        and (parameter.dtype == x.dtype or parameter.dtype == torch.float32)
    )
