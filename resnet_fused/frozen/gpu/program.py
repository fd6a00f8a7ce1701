"""A frozen network as a list of steps, and the plan of the memory they write to."""

from typing import NamedTuple

import torch

from ...kernels import layout
from ..memory_plan import Plan
from . import layers


class Step(NamedTuple):
    """One layer: the numbers of the values it reads and writes, and of those in the plan where the layer writes there.
    A pair of convolutions writes two values; every other layer one."""

    layer: object
    x: int
    residual: int | None
    outs: tuple
    places: tuple


class _Module:
    """A module of the network as a layer: a pool of another kind, a shortcut without a convolution. What it returns may be
    what it was given, or a view of it."""

    writes_out = False

    def __init__(self, module):
        self.module = module

    def __call__(self, x, residual, out):
        if x.dtype.itemsize == 1:  # e4m3, for which torch has few operators: what moves values, and zeros, moves bytes
            return layout.in_format(self.module(x.view(torch.uint8)), layout.CHANNELS_LAST).view(x.dtype)
        return layout.in_format(self.module(x), layout.CHANNELS_LAST)


def arrange(stem, pool, blocks, dtype):
    """(steps in their order, Plan in bytes, dtypes of its values): `stem` and the sites of `blocks` have their layers
    (`site.run`); value 0 is the input.

    A layer reads what it `takes` and writes what it has `stored`. Where its input was not stored so, its `entry` converts
    it, once for all that read it.
    """
    steps, dtypes, shapes, entries = [], {0: dtype}, {}, {}

    def step(layer, x, residual, sites):
        outs = tuple(len(dtypes) + i for i in range(len(sites)))
        for out, (shape, stored) in zip(outs, sites, strict=True):
            shapes[out], dtypes[out] = shape, stored
        steps.append(Step(layer, x, residual, outs, (None,) * len(outs)))
        return outs

    def written(site):
        return layers.out_shape(site), site.run.stored

    def add(site, x, residual=None):
        if site.run.takes != dtypes[x]:
            if x not in entries:
                (entries[x],) = step(site.run.entry, x, None, [(site.shape, site.run.takes)])
            x = entries[x]
        return step(site.run, x, residual, [written(site)])[0]

    def through(module, x):
        return step(_Module(module), x, None, [(None, dtypes[x])])[0]

    x = add(stem, 0)
    if pool is not None:
        x = through(pool, x)
    for block in blocks:
        shortcut, out, sites = x, x, block.sites
        if block.pair is not None:
            out, shortcut = step(block.pair, x, None, [written(site) for site in (block.sites[0], block.projection)])
            sites = sites[1:]
        elif block.projection is not None:
            shortcut = add(block.projection, x)
        elif block.shortcut is not None:
            shortcut = through(block.shortcut, x)
        for site in sites:
            out = add(site, out, shortcut if site.residual else None)
        x = out
    return _placed(steps, shapes, dtypes)


def _placed(steps, shapes, dtypes):
    """(the steps with places in a plan, the Plan, its dtypes): a slot is free again after the last step that reads its
    value, or what a module made of it."""
    last = {value: i for i, step in enumerate(steps) for value in (step.x, step.residual)}
    for step in reversed(steps):
        if isinstance(step.layer, _Module):
            last[step.x] = max(last[step.x], last.get(step.outs[0], len(steps)))
    plan, places, placed, stored = Plan(), {}, [], []
    for i, step in enumerate(steps):
        for out in step.outs if step.layer.writes_out else ():
            places[out] = plan.take(shapes[out], dtypes[out].itemsize)
            stored.append(dtypes[out])
        placed.append(step._replace(places=tuple(places.get(out) for out in step.outs)))
        for value in [value for value in places if last.get(value, len(steps)) == i]:
            plan.give_back(places.pop(value))
    return placed, plan, stored


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
