"""What runs every part of a static engine: the fastest way by measurement on its device, remembered for the next engine."""

import functools
from typing import NamedTuple

import torch

from ... import dispatch
from ...measure import remembered
from . import head, layers, measure, pair

SECONDS = 0.2  # of timing for the ways of one part


class Way(NamedTuple):
    """A kind of layer that may run a part; `make(site, dtype)`, None for a site that is run by a pair."""

    name: str
    make: object


def choose(engine):
    """Gives every site of `engine` its way and reason; returns ({block: way of a pair}, way of the head, its reason)."""
    convolutions(engine, engine._sites)
    return _pairs(engine), *last(engine)


def convolutions(engine, sites):
    """Gives each of these sites its way and reason."""
    groups = {}
    for site in sites:
        groups.setdefault(site.key, []).append(site)
    for sites in groups.values():
        able = ways(layers.options(sites[0], engine.dtype, engine.device))
        timed = functools.partial(measure.layer, sites, able, *_where(engine))
        choice, reason = fastest(engine, _key(engine, "static", *sites[0].key), able, timed)
        for site in sites:
            site.way, site.reason = choice, reason


def _pairs(engine):
    chosen = {}
    for block in engine._blocks:
        found = pair.options(block, engine.dtype, engine.device)
        if not found:
            continue
        able = ways({"apart": pair.Apart} | found)
        sites = block.sites[0], block.projection
        key = _key(engine, "static_pair", *sites[0].key, *sites[1].key)
        timed = functools.partial(measure.pairs, block, able, *_where(engine))
        choice, reason = fastest(engine, key, able, timed)
        if choice.name != "apart":
            chosen[block] = choice
            for site in sites:
                site.way, site.reason = Way(choice.name, None), reason
    return chosen


def last(engine):
    """(the way of the head, its reason)."""
    model, shape = engine._model, layers.out_shape(engine._blocks[-1].sites[-1])
    able = ways(head.options(model, engine.device))
    key = _key(engine, "static_head", shape, tuple(model.fc.weight.shape))
    return fastest(engine, key, able, functools.partial(measure.heads, model, shape, able, *_where(engine)))


def ways(found):
    return [Way(name, make) for name, make in found.items()]


def fastest(engine, key, able, measure):
    """(the way of least time, why): remembered under `key`, or as `measure()` finds."""
    if len(able) == 1:
        return able[0], "the only way for this layer"
    seconds = engine._known(key, able, measure)
    return min(seconds, key=seconds.get), engine.entries[key].reason()


def _where(engine):
    return engine.dtype, engine.device, engine.graphed, SECONDS


def _key(engine, kind, *parts):
    precision = dispatch.tf32_allowed() if engine.dtype == torch.float32 else None
    return remembered.key(kind, engine.dtype, *parts, precision, "graph" if engine.graphed else "calls")
