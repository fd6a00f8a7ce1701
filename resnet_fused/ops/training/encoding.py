"""Blocks as the arguments of an op: its tensors in one list, everything else in lists of numbers, and back."""

import functools

import torch

from .unit import Block, Unit

_PER_UNIT = 10  # stride, padding, dilation (pairs), groups, and which tensors there are: bn_weight, bn_bias, running


def encode(blocks):
    """(tensors, numbers, eps, groups): what an op takes in place of the list of Blocks."""
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


@functools.lru_cache(maxsize=1024)
def _structure(numbers, eps, groups):
    """[([constants of a unit], whether the last is a projection)]; constants: what `Unit` has besides its tensors, and
    which of bn_weight, bn_bias and running statistics there are."""
    numbers, eps, groups = iter(numbers[1:]), iter(eps), iter(groups.split(","))
    blocks = []
    for _ in range(next(numbers)):
        count, projection = next(numbers), next(numbers)
        units = []
        for _ in range(count + projection):
            plan = [next(numbers) for _ in range(_PER_UNIT)]
            pairs = plan[:2], plan[2:4], plan[4:6]
            units.append(((*pairs, plan[6], next(eps), next(groups)), plan[7], plan[8], plan[9]))
        blocks.append((units, bool(projection)))
    return blocks


def decode(tensors, numbers, eps, groups):
    """The list of Blocks that `encode` was given; `tensors` may be anything else of the same length, such as flags."""
    take, blocks = iter(tensors).__next__, []
    for plans, projection in _structure(tuple(numbers), tuple(eps), groups):
        units = []
        for constants, has_weight, has_bias, frozen in plans:
            weight = take()
            bn_weight = take() if has_weight else None
            bn_bias = take() if has_bias else None
            mean, var = (take(), take()) if frozen else (None, None)
            units.append(Unit(weight, bn_weight, bn_bias, mean, var, *constants))
        blocks.append(Block(units[:-1], units[-1]) if projection else Block(units, None))
    return blocks


def gradients(blocks, grads, wanted):
    """The gradients {(block, unit, name): tensor} in the order of `encode`'s tensors, in the dtypes of the parameters.

    An op cannot return None: a tensor without values stands for what is not wanted. wanted: the blocks of flags.
    """
    out = []
    for b, (block, flags) in enumerate(zip(blocks, wanted, strict=True)):
        for u, (unit, flag) in enumerate(zip(block.all_units(), flags.all_units(), strict=True)):
            for name in ("weight", "bn_weight", "bn_bias", "mean", "var"):
                parameter = getattr(unit, name)
                if parameter is None:
                    continue
                g = grads.get((b, u, name)) if getattr(flag, name) else None
                out.append(
                    parameter.new_empty(0) if g is None else g if g.dtype == parameter.dtype else g.to(parameter.dtype)
                )
    return out


def reference(x, blocks):
    """The blocks in torch's own operators: what the double backward differentiates."""
    for block in blocks:
        identity = x
        for i, unit in enumerate(block.units):
            x = reference_unit(torch.relu(x) if i else x, unit)
        x = torch.relu(x + (identity if block.projection is None else reference_unit(identity, block.projection)))
    return x


def reference_unit(x, unit):
    z = torch.ops.aten.convolution(x, unit.weight, None, *unit.convolution, False, [0, 0], unit.groups)
    return torch.nn.functional.batch_norm(
        z, unit.mean, unit.var, unit.bn_weight, unit.bn_bias, unit.mean is None, 0.0, unit.eps
    )
