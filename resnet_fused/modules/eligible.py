"""Which modules may be fused: the questions.

The modules inside a block only hold parameters when the block is fused: their `forward` does not run. So a block is fused
only where a caller cannot tell the difference: its children are exactly torch's own classes, unhooked and unmodified.
"""

import torch
from torch import nn
from torch.nn.modules import module as _module

from ..ops.define import why_not as why_not_ours
from .norms import why_not_here, why_not_norm


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
    if (why := why_not_ours(x)) is not None:
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


def why_not_pool(pool):
    """Why `pool` cannot be part of a fused op, or None: only ResNet's own, 3x3 of stride 2, can."""
    if type(pool) is not nn.MaxPool2d:
        return f"is a {type(pool).__name__}, not exactly nn.MaxPool2d"
    if watched(pool):
        return "carries a hook"
    wanted = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)
    return None if wanted == (3, 2, 1, 1, False, False) else "is not 3x3 of stride 2 and padding 1"


def is_projection(downsample):
    return type(downsample) is nn.Sequential and len(downsample) == 2 and isinstance(downsample[0], nn.Conv2d)
