"""Names for the passes inside a training op, such as layer1.0.bn2+add+relu: the modules whose tensors a pass reads."""

import itertools

from ..ops.training import encoding

_KINDS = {"conv_stats": "convolution", "bn_stats": "statistics", "bn_relu": "end", "bn_add_bn_relu": "end"}


def names(recorded, tensors, numbers, eps, groups, owner):
    """The name of every op in `recorded`, the passes of one call of a training op, in order.

    tensors, numbers, eps, groups: the call's arguments. owner: {id of a tensor: name of its module}.
    """
    passes = _passes(encoding.decode(tensors, numbers, eps, groups), owner)
    found = []
    for op in recorded:  # not every pass is recorded: statistics may be taken in an epilogue, or be frozen
        passes = itertools.dropwhile(lambda p, kind=_KINDS[op]: p[0] != kind, passes)
        found.append(next(passes)[1])
    return found


def _passes(blocks, owner):
    """(kind, name) of every pass that the forward of the training ops may make, in order."""
    for block in blocks:
        units = [(_owner(owner, unit.weight), _owner(owner, *unit[1:5])) for unit in block.all_units()]
        last = len(block.units) - 1
        for u, (conv, bn) in enumerate(units):
            yield "convolution", conv
            yield "statistics", bn
            if u < last:
                yield "end", f"{bn}+relu"
        end = units[last][1]
        if block.projection is not None:
            parent = end.rpartition(".")[0]
            end += f"+{units[-1][1].removeprefix(parent).lstrip('.')}"
        # The stem is a block of one unit, with nothing to add.
        yield "end", f"{end}+relu" if last == 0 and block.projection is None else f"{end}+add+relu"


def _owner(owner, *tensors):
    return next((owner[id(t)] for t in tensors if id(t) in owner), "?")
