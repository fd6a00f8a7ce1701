"""How modules that may be fused run in evaluation, and one convolution at a time in training: by the ops of this package."""

import torch
from torch import nn

from .. import dispatch, ops
from ..kernels import layout
from .eligible import is_projection, layout_is_seen, why_not_pool
from .norms import frozen_statistics, is_frozen


def _with_statistics(op, bn, *arguments, **keywords):
    """`op` with the statistics of `bn`.

    The batch is counted before, as nn.BatchNorm2d.forward does: a checkpoint that recomputes may leave the op half way.
    The count is taken back where the op refuses its arguments."""
    if type(bn) is not nn.BatchNorm2d and is_frozen(bn):
        return op(*arguments, **keywords, **frozen_statistics(bn))
    counts = bn.training and bn.track_running_stats and bn.num_batches_tracked is not None
    if counts:
        bn.num_batches_tracked.add_(1)
    try:
        return op(*arguments, **keywords, **_statistics(bn))
    except (RuntimeError, TypeError, ValueError):
        if counts:
            bn.num_batches_tracked.sub_(1)
        raise


def _statistics(bn):
    """The keyword arguments of the ops for a batch norm."""
    without_buffers = bn.running_mean is None and bn.running_var is None
    update = not bn.training or bn.track_running_stats
    return {
        "running_mean": bn.running_mean if update else None,
        "running_var": bn.running_var if update else None,
        "training": bn.training or without_buffers,
        "momentum": bn.momentum,
        "num_batches_tracked": bn.num_batches_tracked,
        "eps": bn.eps,
    }


def conv_bn_relu(x, conv, bn, residual=None, relu=True):
    """relu(bn(conv(x)) [+ residual]) of two modules that `why_not_fused` has passed, in their own modes."""
    return _with_statistics(
        ops.conv_bn_relu, bn, x, conv.weight, bn.weight, bn.bias, residual=residual, relu=relu,
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups,
    )  # fmt: skip


def network_input(x, network):
    """`x` in the layout that is fastest for a network that begins with conv1 and bn1, where nobody can tell: logits have no
    layout, but the gradient of x and maps that a hook sees have."""
    conv, bn = network.conv1, network.bn1
    evaluation = _evaluates(bn) and not (torch.is_grad_enabled() and conv.weight.requires_grad)
    # On CUDA an image of one channel gets the strides too: the maps after it are then channels_last, as kernels need them.
    gray = x.shape[1] == 1 and x.device.type != "cpu" and not layout.has_strides_of_channels_last(x)
    if (layout.is_channels_last(x) and not gray) or not prefers_channels_last(x, conv.weight, evaluation):
        return x
    if (torch.is_grad_enabled() and x.requires_grad) or layout_is_seen(network):
        return x
    return layout.with_strides_of_channels_last(x) if gray else layout.in_format(x, layout.CHANNELS_LAST)


def conv_bn_relu_pool(x, conv, bn, pool):
    """pool(relu(bn(conv(x)))), the stem: in one op where `pool` is ResNet's max-pool and no gradient is wanted."""
    if not _evaluates(bn) or conv.groups != 1 or conv.dilation != (1, 1) or why_not_pool(pool):
        return pool(conv_bn_relu(x, conv, bn))
    return ops.conv_bn_relu_pool(x, conv.weight, *_norm(bn), stride=conv.stride, padding=conv.padding, eps=bn.eps)


def conv_bn_relu_and_shortcut(x, conv, bn, downsample):
    """(relu(bn(conv(x))), the shortcut) of a block. Both read x, and a GPU computes both in one launch."""
    if not is_projection(downsample) or not (_evaluates(bn) and _evaluates(downsample[1])):
        return conv_bn_relu(x, conv, bn), shortcut(x, downsample)
    projection, bn2 = downsample
    plain = projection.padding == (0, 0) and projection.dilation == (1, 1) and conv.groups == projection.groups == 1
    if not plain:
        return conv_bn_relu(x, conv, bn), shortcut(x, downsample)
    return ops.conv_bn_relu_pair(
        x, conv.weight, _norm(bn), projection.weight, _norm(bn2), stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, eps=bn.eps, stride2=projection.stride, eps2=bn2.eps,
    )  # fmt: skip


def _evaluates(bn):
    return (not bn.training and bn.running_mean is not None and bn.running_var is not None) or is_frozen(bn)


def _norm(bn):
    return bn.weight, bn.bias, bn.running_mean, bn.running_var


def norm_relu(x, bn, residual=None, relu=True):
    """relu(bn(x) [+ residual]) of a batch norm that `why_not_fused` has passed, in its own mode."""
    return _with_statistics(ops.bn_relu, bn, x, bn.weight, bn.bias, residual=residual, relu=relu)


def shortcut(x, downsample):
    """The identity, the projection and its batch norm (no ReLU), or whatever else `downsample` does to x."""
    if downsample is None:
        return x
    return conv_bn_relu(x, *downsample, relu=False) if is_projection(downsample) else downsample(x)


def prefers_channels_last(x, weight, evaluation):
    """Whether a network whose weights are like `weight`, and stay as they are, runs faster on `x` in channels_last.

    On CUDA every fast kernel reads channels_last. On a CPU in evaluation Winograd's kernel does, and in 16-bit types oneDNN's
    fast kernels. Otherwise the layout of the weights is faster, since torch's convolution of a channels_last input reorders
    contiguous weights on every call by a slow path: 3.4 ms instead of 1.2 for 512 channels at 7x7, batch 1 (measured: 2-core
    Intel Xeon, 2 threads, 2026-11-24).
    """
    if x.device.type != "cpu" or layout.format_of(weight) == layout.CHANNELS_LAST:
        return True
    if torch.compiler.is_compiling():  # would trace the loading of the library
        return False
    ours = dispatch.default_backend(x.device.type)
    ours_run = ours is not None and dispatch.asked_for() in ("auto", ours.name) and ours.why_not(x.device) is None
    return evaluation and ours_run and x.dtype == weight.dtype
