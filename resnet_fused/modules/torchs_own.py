"""Whether torch's classes and functions are torch's own. Test-time adaptation, weight standardisation and profilers replace
`nn.BatchNorm2d.forward`, `F.conv2d` or `nn.Module.__call__` for all modules at once, and fused ops would not call them."""

import sys

import torch
import torch.nn.functional as F
from torch import nn

NAMES = (
    "nn.Conv2d.forward", "nn.Conv2d._conv_forward", "nn.Conv2d.__call__", "nn.BatchNorm2d.forward",
    "nn.BatchNorm2d.__call__", "nn.SyncBatchNorm.forward", "nn.ReLU.forward", "nn.ReLU.__call__", "nn.MaxPool2d.forward",
    "nn.Identity.forward", "nn.Sequential.forward", "nn.Sequential.__call__", "nn.Module._call_impl", "F.conv2d",
    "F.batch_norm", "F.relu", "F.max_pool2d", "torch.batch_norm", "torch.relu", "torch.relu_",
)  # fmt: skip


def _now():
    """What stands at NAMES. Written out, because this runs for every block on every call (0.7 us)."""
    return (
        nn.Conv2d.forward, nn.Conv2d._conv_forward, nn.Conv2d.__call__, nn.BatchNorm2d.forward,
        nn.BatchNorm2d.__call__, nn.SyncBatchNorm.forward, nn.ReLU.forward, nn.ReLU.__call__, nn.MaxPool2d.forward,
        nn.Identity.forward, nn.Sequential.forward, nn.Sequential.__call__, nn.Module._call_impl, F.conv2d,
        F.batch_norm, F.relu, F.max_pool2d, torch.batch_norm, torch.relu, torch.relu_,
    )  # fmt: skip


def _written_by_torch(function):
    namespace = getattr(function, "__globals__", None)  # functions of C++ have none
    return namespace is None or namespace["__name__"].partition(".")[0] == "torch"


# A replacement that was there before this package is none of torch's either: nothing is equal to the object in its place.
_OWN = tuple(function if _written_by_torch(function) else object() for function in _now())


def asked_once(function):
    """torch.compiler.assume_constant_result, whose import of torch._dynamo takes two seconds."""
    function._dynamo_marked_constant = True
    return function


# torch.compile asks once while it compiles, as it does with whatever it compiles itself.
@asked_once
def why_not_torchs_own():
    """Why modules may compute something else than torch's classes do, or None."""
    if (now := _now()) == _OWN:
        return None
    # torch.export replaces nn.Module.__call__ by another function of torch.
    return next(
        (
            f"{name} was replaced" for name, a, b in zip(NAMES, now, _OWN, strict=True)
            if a is not b and not (name.endswith("call__") and _written_by_torch(a))
        ),
        None,
    )  # fmt: skip


def keeps_forward(cls):
    """Whether the forward of a class of another package is the one of its module."""
    return getattr(cls.forward, "__globals__", None) is vars(sys.modules[cls.__module__])
