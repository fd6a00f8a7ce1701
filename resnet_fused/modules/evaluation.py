"""Between modules and ops: which blocks may be fused, and batch norm's bookkeeping.

The modules inside a block only hold parameters when the block is fused: their `forward` does not run. So a block is fused
only if nobody could tell, that is if its children are exactly torch's own classes, unhooked and unmodified.
"""

import torch
from torch import nn
from torch.nn.modules import module as _module

from .. import ops
from ..kernels import layout
from ..ops.define import left_to_torch
from .evaluation import prefers_channels_last
from .norms import frozen_statistics, is_frozen, why_not_here, why_not_norm


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


def why_not_relu(relu):
    return None if type(relu) is nn.ReLU else f"is a {type(relu).__name__}, not exactly nn.ReLU"


def watched(child):
    """Whether somebody would notice that `child.forward` is not called."""
    state = child.__dict__  # faster than attributes, which ask the class first
    return (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def _why_not_norm(bn, x):
    """In the blocks of this package, which know how to synchronise; over one process SyncBatchNorm is BatchNorm2d."""
    if type(bn) is nn.SyncBatchNorm and {"weight", "bias"} <= bn._parameters.keys():
        return None
    return why_not_norm(bn) or why_not_here(bn, x)


_CHECKS = {  # by the first letters of a name
    "co": lambda conv, x: why_not_convolution(conv),
    "bn": _why_not_norm,
    "re": lambda relu, x: why_not_relu(relu),
}


# Parameters and fake tensors have it: classes that leave torch's functions as they are.
_NO_TORCH_FUNCTION = torch._C._disabled_torch_function_impl


def why_not_fused(x, **children):
    """Why a chain of modules must run module by module, or None.

    `children` maps names such as conv1, bn1, relu or downsample (nn.Sequential(conv, bn), or None) to modules; the kind of
    module expected is the name without its digits. This runs for every block on every call and is kept short.
    """
    if type(x) is not torch.Tensor and getattr(type(x), "__torch_function__", None) is not _NO_TORCH_FUNCTION:
        return f"input is a {type(x).__name__}"
    if x.dim() != 4:
        return f"input has {x.dim()} dimensions"
    if (why := left_to_torch(x)) is not None:
        return why
    if (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return "a global module hook is registered"
    for name, child in children.items():
        if name == "downsample":
            if is_projection(child) and (why := _why_not_shortcut(child, x)) is not None:
                return why  # nothing, or a module that is called as it is, is fine
        elif watched(child):
            return f"{name} carries a hook"
        elif (why := _CHECKS[name[:2]](child, x)) is not None:
            return f"{name} {why}"
    return None


def _why_not_shortcut(downsample, x):
    if watched(downsample):
        return "downsample carries a hook"
    for name, child, check in zip("01", downsample, (_CHECKS["co"], _CHECKS["bn"]), strict=True):
        if watched(child):
            return f"downsample.{name} carries a hook"
        if (why := check(child, x)) is not None:
            return f"downsample.{name} {why}"
    return None


def refuse_scripting(module):
    """`__prepare_scriptable__` of fused modules: torch.jit.script asks for it before it reads the source of forward."""
    raise RuntimeError(
        f"torch.jit.script cannot compile the fused forward of {type(module).__name__}: use torch.jit.trace or torch.export, "
        "or script a model of torchvision or timm after resnet_fused.unconvert(model)"
    )


def _count_batch(bn):
    """What nn.BatchNorm2d.forward does before it normalises; returns the keyword arguments of the ops."""
    if type(bn) is not nn.BatchNorm2d and is_frozen(bn):
        return frozen_statistics(bn)
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


def network_input(x, conv, bn):
    """`x` in the layout that is fastest for a network that begins with these; logits have no layout to tell."""
    evaluation = _evaluates(bn) and not (torch.is_grad_enabled() and conv.weight.requires_grad)
    return layout.in_format(x, layout.CHANNELS_LAST) if prefers_channels_last(x, conv.weight, evaluation) else x


def conv_bn_relu_pool(x, conv, bn, pool):
    """pool(relu(bn(conv(x)))): the stem, in one op where `pool` is the max-pool of ResNet and only values are wanted."""
    if not _evaluates(bn) or conv.groups != 1 or conv.dilation != (1, 1) or why_not_pool(pool):
        return pool(conv_bn_relu(x, conv, bn))
    return ops.conv_bn_relu_pool(x, conv.weight, *_norm(bn), stride=conv.stride, padding=conv.padding, eps=bn.eps)


def why_not_pool(pool):
    """Why `pool` cannot be part of a fused op, or None: only ResNet's own, 3x3 of stride 2, can."""
    if type(pool) is not nn.MaxPool2d:
        return f"is a {type(pool).__name__}, not exactly nn.MaxPool2d"
    if watched(pool):
        return "carries a hook"
    wanted = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)
    return None if wanted == (3, 2, 1, 1, False, False) else "is not 3x3 of stride 2 and padding 1"


def conv_bn_relu_and_shortcut(x, conv, bn, downsample):
    """(relu(bn(conv(x))), the shortcut of a block that begins so): both read x, and a GPU computes both in one launch."""
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
    return ops.bn_relu(x, bn.weight, bn.bias, residual=residual, relu=relu, **_count_batch(bn))


def is_projection(downsample):
    return type(downsample) is nn.Sequential and len(downsample) == 2 and isinstance(downsample[0], nn.Conv2d)


def shortcut(x, downsample):
    """The identity, the projection and its batch norm (no ReLU), or whatever else `downsample` does to x."""
    if downsample is None:
        return x
    return conv_bn_relu(x, *downsample, relu=False) if is_projection(downsample) else downsample(x)
