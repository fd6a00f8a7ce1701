"""What the reader looks for among the calls of a network: predicates of one call and its neighbours."""

import operator

import torch
import torch.nn.functional as F
from torch import nn

from ..modules.eligible import watched, why_not_convolution, why_not_pool
from ..modules.norms import why_not_norm, with_activation
from .functional import Op

POINTWISE = {
    nn.Hardswish: "hardswish", F.hardswish: "hardswish", nn.SiLU: "silu", F.silu: "silu", nn.ReLU6: "relu6",
    F.relu6: "relu6", nn.Sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    nn.Hardsigmoid: "hardsigmoid", F.hardsigmoid: "hardsigmoid",
}  # fmt: skip
RELUS = (nn.ReLU, F.relu, torch.relu, "relu")
ADDS = (operator.add, torch.add, "add")


def is_unwatched(op):
    return op.only is not None and not (isinstance(op.target, nn.Module) and watched(op.target))


def is_convolution(op):
    if op.only is None or not isinstance(op.target, nn.Conv2d) or watched(op.target) or op.only.shape is None:
        return False
    return why_not_convolution(op.target) in (None, "has a bias") and len(op.only.shape) == 4


def norm_of(conv):
    """The batch norm that alone reads the result of the call `conv`, if it can be folded."""
    return conv.user if conv.user is not None and is_norm(conv.user) else None


def is_norm(op):
    """Whether a call is a batch norm by running statistics."""
    if not is_unwatched(op):
        return False
    bn = op.target
    if with_activation(bn) or type(bn) is nn.SyncBatchNorm:
        known = {"weight", "bias"} <= bn._parameters.keys()
    else:
        known = isinstance(bn, nn.Module) and hasattr(bn, "running_var") and why_not_norm(bn) is None
    return known and bn.running_var is not None


def relu_after(op):
    """The ReLU that alone reads the result of a call, or None."""
    return op.user if op.user is not None and op.user.kind in RELUS and is_unwatched(op.user) else None


def gated(op):
    """(map, gate) of a call that multiplies a map [N, C, H, W] by a gate [N, C, 1, 1], or None."""
    if op.kind not in (operator.mul, torch.mul, "mul") or len(op.args) != 2 or op.kwargs:
        return None
    shapes = [a.shape if isinstance(a, Op) else None for a in op.args]
    for (x, gate), (of_map, of_gate) in ((op.args, shapes), (op.args[::-1], shapes[::-1])):
        if of_map and len(of_map) == 4 and of_map[2:] != (1, 1) and of_gate == (*of_map[:2], 1, 1):
            return x, gate
    return None


def other_addend(add, last):
    """The value that the call `add` adds to `last`, if it is a map of the same shape."""
    if len(add.args) != 2 or add.kwargs or add.args[0] is add.args[1]:
        return None
    other = add.args[1] if add.args[0] is last else add.args[0]
    return other if isinstance(other, Op) and other.shape == last.shape and len(last.shape) == 4 else None


def is_pool(op):
    if isinstance(op.target, nn.Module):
        return why_not_pool(op.target) is None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = dict(zip(names, op.args[1:], strict=False)) | op.kwargs
    wanted = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    plain = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False, "stride": None} | given
    return op.target is F.max_pool2d and plain == wanted


def pool_before(linear):
    """The calls between the map and `linear` where they are the mean of all pixels, else an empty list."""
    op, found = linear.only, []
    flattened = op is not None and op.user is linear and flattens(op)
    if flattened:
        found, op = [op], op.args[0]
    if op is None or len(op.users) != 1 or not is_mean(op, flat=not flattened) or len(op.args[0].shape or ()) != 4:
        return []
    return [op, *found]


def flattens(op):
    """Whether a call flattens everything but the batch."""
    if type(op.target) is nn.Flatten:
        return (op.target.start_dim, op.target.end_dim) == (1, -1) and is_unwatched(op)
    given = dict(zip(("start_dim", "end_dim"), op.args[1:], strict=False)) | op.kwargs
    return op.target in (torch.flatten, "flatten") and given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})


def is_mean(op, flat):
    """Whether a call is the mean of all pixels, as [N, C] or else as [N, C, 1, 1]."""
    if type(op.target) is nn.AdaptiveAvgPool2d:
        return not flat and op.target.output_size in (1, (1, 1)) and is_unwatched(op)
    if op.target is F.adaptive_avg_pool2d:
        return not flat and len(op.args) == 2 and op.args[1] in (1, (1, 1), [1, 1])
    if op.target in ("mean", torch.mean):
        names = ("dim", "keepdim")
        given = dict(zip(names, op.args[1:], strict=False)) | op.kwargs
        dims = given.pop("dim", None)
        keeps = given.pop("keepdim", False)
        whole = isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]
        return whole and not given and keeps is not flat
    return False
