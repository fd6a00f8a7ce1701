"""Blocks as the arguments of an op: its tensors in one list, everything else in lists of numbers, and back."""

import torch

from .unit import Block, Unit

_PER_UNIT = 10  # stride, padding, dilation (pairs), groups, and which tensors there are: bn_weight, bn_bias, running


def encode(blocks):
    """(tensors, numbers, eps, groups): what an op takes in place of the list of Blocks."""
    tensors, numbers, eps, groups = [], [len(blocks)], [], []
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


def decode(tensors, numbers, eps, groups):
    """The list of Blocks that `encode` was given; `tensors` may be anything else of the same length, such as flags."""
    tensors, numbers, eps, groups = iter(tensors), iter(numbers), iter(eps), iter(groups.split(","))

    def unit():
        plan = [next(numbers) for _ in range(_PER_UNIT)]
        has_weight, has_bias, frozen = plan[7:]
        weight = next(tensors)
        bn_weight = next(tensors) if has_weight else None
        bn_bias = next(tensors) if has_bias else None
        mean, var = (next(tensors), next(tensors)) if frozen else (None, None)
        return Unit(
            weight, bn_weight, bn_bias, mean, var, plan[:2], plan[2:4], plan[4:6], plan[6], next(eps), next(groups)
        )  # fmt: skip

    blocks = []
    for _ in range(next(numbers)):
        units, projection = next(numbers), next(numbers)
        blocks.append(Block([unit() for _ in range(units)], unit() if projection else None))
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
                out.append(parameter.new_empty(0) if g is None else g.to(parameter.dtype))
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
