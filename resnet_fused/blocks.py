"""Between modules and ops: which blocks may be fused, and batch norm's bookkeeping.

The modules inside a block only hold parameters when the block is fused: their `forward` does not run. So a block is fused
only if nobody could tell, that is if its children are exactly torch's own classes, unhooked and unmodified.
"""

import torch
from torch import nn
from torch.nn.modules import module as _module

from . import ops
from .ops._library import left_to_torch


def why_not_convolution(conv):
    """Why `conv` cannot be part of a fused op, or None."""
    if type(conv) is not nn.Conv2d:
        return f"is a {type(conv).__name__}, not exactly nn.Conv2d"
    if conv.bias is not None:
        return "has a bias"
    if conv.padding_mode != "zeros":
        return f"has padding_mode {conv.padding_mode!r}"
    if isinstance(conv.padding, str):
        return f"has padding {conv.padding!r}"
    if "weight" not in conv._parameters:
        return "has a weight that is computed (pruned or parametrized)"
    return None


def why_not_norm(bn):
    """Why `bn` cannot be part of a fused op, or None."""
    if type(bn) not in (nn.BatchNorm2d, nn.SyncBatchNorm):  # over one process the latter is the former
        return f"is a {type(bn).__name__}, not exactly nn.BatchNorm2d"
    if not {"weight", "bias"} <= bn._parameters.keys():
        return "has parameters that are computed (pruned or parametrized)"
    return None


def why_not_relu(relu):
    return None if type(relu) is nn.ReLU else f"is a {type(relu).__name__}, not exactly nn.ReLU"


def watched(child):
    """Whether somebody would notice that `child.forward` is not called."""
    return bool(
        child._forward_hooks
        or child._forward_pre_hooks
        or child._backward_hooks
        or child._backward_pre_hooks
        or "forward" in child.__dict__
    )


_CHECKS = {"conv": why_not_convolution, "bn": why_not_norm, "relu": why_not_relu}


# Parameters and fake tensors have it: classes that leave torch's functions as they are.
_NO_TORCH_FUNCTION = torch._C._disabled_torch_function_impl


def why_not_fused(x, **children):
    """Why a chain of modules must run module by module, or None.

    `children` maps names such as conv1, bn1, relu or downsample (nn.Sequential(conv, bn), or None) to modules; the kind of
    module expected is the name without its digits.
    """
    if type(x) is not torch.Tensor and getattr(type(x), "__torch_function__", None) is not _NO_TORCH_FUNCTION:
        return f"input is a {type(x).__name__}"
    if x.dim() != 4:
        return f"input has {x.dim()} dimensions"
    if (why := left_to_torch(x)) is not None:
        return why
    if _module._global_forward_hooks or _module._global_forward_pre_hooks or _module._global_backward_hooks:
        return "a global module hook is registered"
    for name, child in children.items():
        if name == "downsample":
            if child is None:
                continue
            if type(child) is not nn.Sequential or len(child) != 2:
                return "downsample is not a Sequential of a convolution and a batch norm"
            parts = (("downsample", None, child), ("downsample.0", "conv", child[0]), ("downsample.1", "bn", child[1]))
        else:
            parts = ((name, name.rstrip("0123456789"), child),)
        for part, kind, module in parts:
            if watched(module):
                return f"{part} carries a hook"
            if kind is not None and (why := _CHECKS[kind](module)) is not None:
                return f"{part} {why}"
    return None


def _count_batch(bn):
    """What nn.BatchNorm2d.forward does before it normalises; returns the keyword arguments of the ops."""
    if bn.training and bn.track_running_stats and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
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
    return ops.conv_bn_relu(
        x, conv.weight, bn.weight, bn.bias, residual=residual, relu=relu,
        stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups, **_count_batch(bn),
    )  # fmt: skip


def shortcut(x, downsample):
    """The identity, or the projection and its batch norm (no ReLU)."""
    return x if downsample is None else conv_bn_relu(x, downsample[0], downsample[1], relu=False)
