"""The steps between convolutions that the library can run inside its one call of a stretch (csrc/cpu/maps/maps.h)."""

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.shapes import out_size
from ...modules.eligible import watched
from ...modules.zero_pad import ZeroPadShortcut
from ..function import Function, Value
from ..gate import Gate
from ..network import ConvBn, Head


def is_mean(module):
    """Whether `module` is the mean of all pixels of a map, as [N, C, 1, 1]."""
    if type(module) is nn.AdaptiveAvgPool2d:
        return module.output_size in (1, (1, 1))
    if not isinstance(module, Function):
        return False
    if module.target is F.adaptive_avg_pool2d:
        return module.args in ((Value(0), size) for size in (1, (1, 1), [1, 1])) and not module.kwargs
    if module.target not in ("mean", torch.mean):
        return False
    given = dict(zip(("x", "dim", "keepdim"), module.args, strict=False)) | module.kwargs
    whole = given.pop("dim", None) in ((2, 3), [2, 3], (-2, -1), [-2, -1])
    return whole and given == {"x": Value(0), "keepdim": True}


def pool_of(module):
    """(kernel, stride, padding) of a max-pool with the same numbers on both axes, or None."""
    if type(module) is not nn.MaxPool2d or module.ceil_mode or module.return_indices:
        return None
    pairs = [(n, n) if isinstance(n, int) else tuple(n) for n in (module.kernel_size, module.stride, module.padding)]
    one = module.dilation in (1, (1, 1))
    return tuple(a for a, _ in pairs) if one and all(a == b for a, b in pairs) else None


def is_able_apply(module):
    """Whether the library has a pass for the module of an Apply, inside a stretch."""
    known = type(module) in (Gate, ZeroPadShortcut) or is_mean(module) or pool_of(module) is not None
    return known and not watched(module)


def shape_after(module, image):
    """[C, H, W] of the result for the first input of one image."""
    channels, *sizes = image
    if type(module) is Gate:
        return tuple(image)
    if type(module) is ZeroPadShortcut:
        return module.out_planes, *(-(-size // module.stride) for size in sizes)
    pool = pool_of(module)
    return (channels, *((1, 1) if pool is None else (out_size(size, *pool) for size in sizes)))


def map_after(steps, image):
    """(channels, height, width) of the result of the last of `steps` for an image of that shape; logits have one pixel."""
    maps = {steps[0].input: image}
    for step in steps:
        if isinstance(step, ConvBn):
            maps[step.output] = step.out_shape((1, *maps[step.input]))[1:]
        elif isinstance(step, Head):
            maps[step.output] = step.fc.out_features, 1, 1
        else:
            maps[step.output] = shape_after(step.module, maps[step.input])
    return maps[steps[-1].output]
