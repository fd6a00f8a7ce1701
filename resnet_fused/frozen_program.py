"""A frozen network as a list of steps, and the plan of the memory they write to."""

import itertools
from typing import NamedTuple

from . import frozen_layers, layout
from .frozen_plan import Plan


class Step(NamedTuple):
    """One layer: the numbers of the values it reads and writes, and of those in the plan where the layer writes there.
    A pair of convolutions writes two values; every other layer one."""

    layer: object
    x: int
    residual: int | None
    outs: tuple
    places: tuple


class _Module:
    """A module of the network as a layer: a pool of another kind, a shortcut without a convolution."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, residual, out):
        return layout.in_format(self.module(x), layout.CHANNELS_LAST)


def arrange(stem, pool, blocks):
    """(steps in their order, Plan): `stem` and the sites of `blocks` have their layers (`site.run`); value 0 is the input."""
    plan, steps, numbers = Plan(), [], itertools.count(1)

    def add(site, x, residual=None):
        place = plan.take(frozen_layers.out_shape(site)) if site.run.writes_out else None
        steps.append(Step(site.run, x, residual, (next(numbers),), (place,)))
        return steps[-1].outs[0]

    def together(block, x):
        """(first convolution, projection) in one launch."""
        places = tuple(plan.take(frozen_layers.out_shape(site)) for site in (block.sites[0], block.projection))
        steps.append(Step(block.pair, x, None, (next(numbers), next(numbers)), places))
        return steps[-1].outs

    def through(module, x):
        steps.append(Step(_Module(module), x, None, (next(numbers),), (None,)))
        return steps[-1].outs[0]

    def done(*values):
        for step in steps:
            for value, place in zip(step.outs, step.places, strict=True):
                if value in values and place is not None:
                    plan.give_back(place)

    x = add(stem, 0)
    if pool is not None:
        before, x = x, through(pool, x)
        done(before)
    for block in blocks:
        shortcut, out, sites = x, x, block.sites
        if block.pair is not None:
            out, shortcut = together(block, x)
            sites = sites[1:]
        elif block.projection is not None:
            shortcut = add(block.projection, x)
        elif block.shortcut is not None:
            shortcut = through(block.shortcut, x)
        for site in sites:
            before, out = out, add(site, out, shortcut if site.residual else None)
            if before != x:
                done(before)
        done(*{x, shortcut})
        x = out
    return steps, plan


def run(steps, places, x):
    """The last value. `places`: the tensors of the plan."""
    values = {0: x}
    last = {value: i for i, step in enumerate(steps) for value in (step.x, step.residual)}
    for i, step in enumerate(steps):
        residual = None if step.residual is None else values[step.residual]
        outs = tuple(None if place is None else places[place] for place in step.places)
        if len(outs) == 1:
            values[step.outs[0]] = step.layer(values[step.x], residual, outs[0])
        else:
            values |= zip(step.outs, step.layer(values[step.x], residual, outs), strict=True)
        for value in {step.x, step.residual} & values.keys():
            if last[value] == i:
                del values[value]  # what no plan holds is free again
    (result,) = values.values()
    return result
