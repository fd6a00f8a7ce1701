"""Which modules may be fused.

The modules inside a fused block only hold parameters: their `forward` does not run. So a block is fused only where a caller
cannot tell the difference: its children are exactly torch's own classes, without hooks and unmodified.
"""

import torch
from torch import nn
from torch.nn.modules import module as _module

from ..ops.define import why_not as why_not_ours
from .norms import has_parameters, why_not_here, why_not_norm
from .torchs_own import why_not_torchs_own


def is_sequence(module):
    """Whether to call `module` is to call its children one after the other: nn.Sequential, and subclasses that keep its
    forward, as torchvision's Conv2dNormActivation does. The package sees through these and through no other module."""
    return type(module) is nn.Sequential or runs_in_order(type(module))


def runs_in_order(cls):
    """The same of the instances of a class."""
    return (
        issubclass(cls, nn.Sequential)
        and cls.forward is nn.Sequential.forward
        and cls.__call__ is nn.Sequential.__call__
    )


def is_projection(downsample):
    """Whether a block's shortcut is a sequence of a convolution and its norm."""
    if downsample is None:  # most often
        return False
    return is_sequence(downsample) and len(downsample) == 2 and isinstance(downsample[0], nn.Conv2d)


def watched(child):
    """Whether a caller would notice that `child.forward` is not called: it has hooks, or its forward or call was replaced."""
    state = child.__dict__  # faster than attributes, which ask the class first
    return state["_forward_pre_hooks"] or _watched_otherwise(state)


def _watched_otherwise(state):
    """Whether something else than a forward pre-hook watches the module with the attributes `state`."""
    return (
        state["_forward_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or "_call_impl" in state
    )


# Modules whose results have the layout of their input, and do not depend on it otherwise.
_BLIND = ("torch.nn.modules.", "torchvision.ops.misc", f"{__package__}.", f"{__package__.rpartition('.')[0]}.models.")


def _is_blind(cls):
    forward = getattr(cls, "forward", None)  # classes of TorchScript have none
    return getattr(forward, "__module__", "").startswith(_BLIND)


def blind(hook):
    """Marks a forward pre-hook that reads no more of a map than its shape and dtype, and returns it."""
    hook.blind = True
    return hook


def _only_blind_hooks(child):
    state = child.__dict__
    blind_alone = all(hasattr(hook, "blind") for hook in state["_forward_pre_hooks"].values())
    return blind_alone and not _watched_otherwise(state)


def layout_is_seen(module):
    """Whether somebody can tell the layout of maps inside `module`: a hook, or a module of somebody else."""
    for child in module._modules.values():
        if child is not None and (
            (watched(child) and not _only_blind_hooks(child))
            or not _is_blind(type(child))
            or (child._modules and layout_is_seen(child))
        ):
            return True
    return False


# What follows are checks: of a child and of the input of the block it stands in (which most of them do not need) they
# return why the child cannot be part of a fused op, or None.


def why_not_convolution(conv, x=None):
    if type(conv) is not nn.Conv2d:
        return f"is a {type(conv).__name__}, not exactly nn.Conv2d"
    parameters = conv._parameters  # faster than conv.bias, which asks the class first
    if parameters.get("bias") is not None or ("bias" not in parameters and conv.bias is not None):
        return "has a bias"
    if conv.padding_mode != "zeros":
        return f"has padding_mode {conv.padding_mode!r}"
    if not (type(conv.stride) is type(conv.padding) is type(conv.dilation) is tuple):
        if isinstance(conv.padding, str):
            return f"has padding {conv.padding!r}"
        return (
            f"has stride {conv.stride}, padding {conv.padding} and dilation {conv.dilation}, which are not all tuples"
        )
    if "weight" not in parameters:
        return "has a weight that is computed (pruned or parametrized)"
    if "_conv_forward" in conv.__dict__:
        return "has a _conv_forward of its own"
    return None


def why_not_relu(relu, x=None):
    return None if type(relu) is nn.ReLU else f"is a {type(relu).__name__}, not exactly nn.ReLU"


def why_not_batch_norm(bn, x):
    return why_not_norm(bn) or why_not_here(bn, x)


def why_not_synchronised_norm(bn, x):
    """For blocks that can synchronise nn.SyncBatchNorm; over one process it is nn.BatchNorm2d."""
    if type(bn) is nn.SyncBatchNorm and has_parameters(bn):
        return None
    return why_not_batch_norm(bn, x)


def why_not_pool(pool, x=None):
    """Only ResNet's own pool, 3x3 of stride 2, has a kernel."""
    if type(pool) is not nn.MaxPool2d:
        return f"is a {type(pool).__name__}, not exactly nn.MaxPool2d"
    if watched(pool):
        return "carries a hook"
    settings = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)
    return None if settings == (3, 2, 1, 1, False, False) else "is not 3x3 of stride 2 and padding 1"


# What parameters and fake tensors have for __torch_function__: their classes leave torch's functions as they are.
_NO_TORCH_FUNCTION = torch._C._disabled_torch_function_impl


def why_not_input(x):
    """Why no module of this package runs fused ops on `x` now, or None."""
    if type(x) is not torch.Tensor and getattr(type(x), "__torch_function__", None) is not _NO_TORCH_FUNCTION:
        return f"input is a {type(x).__name__}"
    if x.dim() != 4:
        return f"input has {x.dim()} dimensions"
    if (why := why_not_ours(x) or why_not_torchs_own()) is not None:
        return why
    if (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return "a global module hook is registered"
    return None


def why_not_fused(x, children, checks, downsample=None):
    """Why a block runs module by module on `x`, or None. This runs for every block on every call and is kept short.

    Args:
        children: {name: module}.
        checks: pairs (name of a child, check of it).
        downsample: the shortcut. Its convolution and norm are checked; any other shortcut is called as it is.
    """
    if (why := why_not_input(x)) is not None:
        return why
    for name, check in checks:
        child = children.get(name)
        if child is None:
            return f"{name} is gone"
        if watched(child):
            return f"{name} carries a hook"
        if (why := check(child, x)) is not None:
            return f"{name} {why}"
    return _why_not_projection(downsample, x) if is_projection(downsample) else None


def checks_of(convolutions):
    """The checks of a block with so many convolutions, in torchvision's names: conv1, bn1, conv2, ... and relu."""
    numbers = range(1, convolutions + 1)
    pairs = [((f"conv{i}", why_not_convolution), (f"bn{i}", why_not_synchronised_norm)) for i in numbers]
    return *sum(pairs, ()), ("relu", why_not_relu)


def _why_not_projection(downsample, x):
    if watched(downsample):
        return "downsample carries a hook"
    conv, bn = downsample
    for name, child, check in (("0", conv, why_not_convolution), ("1", bn, why_not_synchronised_norm)):
        if watched(child):
            return f"downsample.{name} carries a hook"
        if (why := check(child, x)) is not None:
            return f"downsample.{name} {why}"
    return None


def check_not_scripted(module):
    """`__prepare_scriptable__` of fused modules, which torch.jit.script calls before it reads the source of forward: raises."""
    raise RuntimeError(
        f"torch.jit.script cannot compile the fused forward of {type(module).__name__}: use torch.jit.trace or torch.export, "
        "or script a model of torchvision or timm after resnet_fused.unconvert(model)"
    )
