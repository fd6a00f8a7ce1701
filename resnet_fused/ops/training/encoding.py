"""Blocks as the arguments of an op, and back.

The schema of an op knows tensors, numbers, text and lists of one kind of these, but no structures. So an op of training
takes a list of `Block`s as four arguments:

tensors  The tensors of all units, unit by unit: weight, bn_weight, bn_bias, mean, var. Those that are None are left out.
numbers  Two numbers for all: whether any unit has frozen statistics (1 or 0), and how many blocks there are.
         Then for every block two numbers: how many units its main path has, and whether it has a projection (1 or 0).
         Then for every unit of that block, the projection last, ten numbers: stride, padding and dilation (two each),
         groups, whether there is a bn_weight, whether there is a bn_bias, whether there are a mean and a var.
eps      One number for every unit.
groups   The names of the units' process groups, separated by commas; an empty name: this process alone.

A worked example: the first block of ResNet-18's second layer, with a stride of 2 and a projection, in training.

>>> from torch import empty
>>> norm = [empty(128), empty(128), None, None]  # bn_weight, bn_bias; no mean and var: the statistics are the batch's
>>> conv1 = Unit(empty(128, 64, 3, 3), *norm, stride=[2, 2], padding=[1, 1], dilation=[1, 1], groups=1, eps=1e-05)
>>> conv2 = Unit(empty(128, 128, 3, 3), *norm, stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1, eps=1e-05)
>>> projection = Unit(empty(128, 64, 1, 1), *norm, stride=[2, 2], padding=[0, 0], dilation=[1, 1], groups=1, eps=1e-05)
>>> tensors, numbers, eps, groups = encode([Block([conv1, conv2], projection)])
>>> [tuple(t.shape) for t in tensors[:3]]  # of conv1; conv2 and the projection have three each as well
[(128, 64, 3, 3), (128,), (128,)]
>>> numbers[:2]  # no frozen statistics; one block
[0, 1]
>>> numbers[2:4]  # two units in its main path; a projection
[2, 1]
>>> numbers[4:14]  # of conv1: stride 2 2, padding 1 1, dilation 1 1, groups 1; bn_weight, bn_bias, no mean and var
[2, 2, 1, 1, 1, 1, 1, 1, 1, 0]
>>> numbers[14:24], numbers[24:]  # of conv2, of the projection
([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], [2, 2, 0, 0, 1, 1, 1, 1, 1, 0])
>>> eps, groups
([1e-05, 1e-05, 1e-05], ',,')
>>> [block] = decode(tensors, numbers, eps, groups)
>>> block.units[0].weight is conv1.weight, block.projection.stride, block.units[1].mean
(True, [2, 2], None)

`decode` reads the lists in the same order. It can also decode flags: called with one flag for every tensor instead of the
tensors, it returns Blocks whose units hold the flags. The flags say which gradients are wanted.
"""

import functools
from typing import NamedTuple

import torch

from ...kernels import torch_convolution
from .unit import Block, Unit

_PER_UNIT = 10


def encode(blocks):
    """(tensors, numbers, eps, groups): the four arguments of an op that stand for the list of Blocks."""
    frozen = any(unit.mean is not None for block in blocks for unit in block.all_units())
    tensors, numbers, eps, groups = [], [int(frozen), len(blocks)], [], []
    for block in blocks:
        numbers += [len(block.units), int(block.projection is not None)]
        for unit in block.all_units():
            parts = [unit.weight, unit.bn_weight, unit.bn_bias, unit.mean, unit.var]
            tensors += [t for t in parts if t is not None]
            numbers += [*unit.stride, *unit.padding, *unit.dilation, unit.groups]
            numbers += [int(t is not None) for t in parts[1:4]]
            eps.append(unit.eps)
            groups.append(unit.group)
    return tensors, numbers, eps, ",".join(groups)


def any_frozen(numbers):
    """Whether a unit among the blocks has frozen statistics."""
    return bool(numbers[0])


class _Form(NamedTuple):
    """The fields of one `Unit` besides its tensors, and which of the optional tensors exist."""

    constants: tuple
    bn_weight: int
    bn_bias: int
    statistics: int


@functools.lru_cache(maxsize=1024)
def _forms(numbers, eps, groups):
    """[(the _Form of every unit of a block, whether the last unit is a projection)]."""
    numbers, eps, groups = iter(numbers[1:]), iter(eps), iter(groups.split(","))
    blocks = []
    for _ in range(next(numbers)):
        count, projection = next(numbers), next(numbers)
        forms = []
        for _ in range(count + projection):
            of_unit = [next(numbers) for _ in range(_PER_UNIT)]
            stride, padding, dilation, conv_groups = of_unit[:2], of_unit[2:4], of_unit[4:6], of_unit[6]
            forms.append(_Form((stride, padding, dilation, conv_groups, next(eps), next(groups)), *of_unit[7:]))
        blocks.append((forms, bool(projection)))
    return blocks


def decode(tensors, numbers, eps, groups):
    """The list of Blocks that `encode` was given. `tensors` may be any other values of the same number, such as
    flags."""
    take, blocks = iter(tensors).__next__, []
    for forms, projection in _forms(tuple(numbers), tuple(eps), groups):
        units = []
        for constants, has_weight, has_bias, has_statistics in forms:
            weight = take()
            bn_weight = take() if has_weight else None
            bn_bias = take() if has_bias else None
            mean, var = (take(), take()) if has_statistics else (None, None)
            units.append(Unit(weight, bn_weight, bn_bias, mean, var, *constants))
        blocks.append(Block(units[:-1], units[-1]) if projection else Block(units, None))
    return blocks


def gradients(blocks, grads, wanted):
    """The gradients {(block, unit, name): tensor} in the order of `encode`'s tensors, in the dtypes of the parameters.

    An op cannot return None, so a tensor without values stands for a gradient that is not wanted. wanted: the blocks of
    flags.
    """
    out, found, narrow = [], [], []
    for b, (block, flags) in enumerate(zip(blocks, wanted, strict=True)):
        for u, (unit, flag) in enumerate(zip(block.all_units(), flags.all_units(), strict=True)):
            for name in ("weight", "bn_weight", "bn_bias", "mean", "var"):
                parameter = getattr(unit, name)
                if parameter is None:
                    continue
                g = grads.get((b, u, name)) if getattr(flag, name) else None
                if g is not None and g.dtype != parameter.dtype:
                    found.append(g)
                    narrow.append(g := torch.empty_like(g, dtype=parameter.dtype))
                out.append(parameter.new_empty(0) if g is None else g)
    if found:
        torch._foreach_copy_(narrow, found)  # one launch
    return out


def reference(x, blocks):
    """The blocks in torch's own operators. The double backward differentiates them."""
    for block in blocks:
        identity = x
        for i, unit in enumerate(block.units):
            x = reference_unit(torch.relu(x) if i else x, unit)
        x = torch.relu(x + (identity if block.projection is None else reference_unit(identity, block.projection)))
    return x


def reference_unit(x, unit):
    """A convolution and its batch norm, without a ReLU."""
    z = torch_convolution.convolve(x, unit.weight, *unit.convolution, unit.groups)
    return torch.nn.functional.batch_norm(
        z, unit.mean, unit.var, unit.bn_weight, unit.bn_bias, unit.mean is None, 0.0, unit.eps
    )
