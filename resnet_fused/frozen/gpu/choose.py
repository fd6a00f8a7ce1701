"""Chooses what runs every part of a GPU engine: the fastest candidate by measurement on its device, remembered for
later engines."""

import functools
from typing import NamedTuple

import torch

from ... import dispatch
from ...measure import remembered
from . import head, layers, measure, pair

SECONDS = 0.2  # of timing for the candidates of one part


class Candidate(NamedTuple):
    """A kind of layer that may run a part. `make(part, dtype)` gives a step, a pair of steps or the head. None: the
    launch of a pair runs the step."""

    name: str
    make: object


class Chosen(NamedTuple):
    """A candidate, and the reason for it."""

    candidate: Candidate
    reason: str


def convolutions(engine, steps):
    """Gives each of these steps its choice and the reason for it."""
    groups = {}
    for step in steps:
        groups.setdefault(step.key, []).append(step)
    for steps in groups.values():
        able = candidates(layers.options(steps[0], engine.dtype, engine.device))
        timed = functools.partial(measure.layer, steps, able, *_where(engine))
        chosen = fastest(engine, _key(engine, "static", *steps[0].key), able, timed)
        for step in steps:
            step.choice, step.reason = chosen


def pairs(engine):
    """{(first, projection): Candidate} of those that are faster in one launch. Both steps get it as their choice."""
    found = {}
    for steps in pair.pairs(engine._steps):
        options = pair.options(*steps, engine.dtype, engine.device)
        if not options:
            continue
        able = candidates({"apart": pair.TwoLaunches} | options)
        key = _key(engine, "static_pair", *steps[0].key, *steps[1].key)
        chosen = fastest(engine, key, able, functools.partial(measure.pair, steps, able, *_where(engine)))
        if chosen.candidate.name != "apart":
            found[steps] = chosen.candidate
            for step in steps:
                step.choice, step.reason = Candidate(chosen.candidate.name, None), chosen.reason
    return found


def heads(engine):
    """{head: Chosen}: what runs each head."""
    found = {}
    for part, shape in engine._head_shapes.items():
        able = candidates(head.options(part, engine.device))
        key = _key(engine, "static_head", shape, tuple(part.fc.weight.shape))
        timed = functools.partial(measure.head, part, shape, able, *_where(engine))
        found[part] = fastest(engine, key, able, timed)
    return found


def candidates(options):
    return [Candidate(name, make) for name, make in options.items()]


def fastest(engine, key, able, measure):
    """The fastest Chosen: as remembered under `key`, otherwise as `measure()` finds."""
    if len(able) == 1:
        return Chosen(able[0], "the only way for this layer")
    seconds = engine._measured(key, able, measure)
    return Chosen(min(seconds, key=seconds.get), engine.entries[key].reason())


def _where(engine):
    return engine.dtype, engine.device, engine.graphed, SECONDS


def _key(engine, kind, *parts):
    precision = dispatch.tf32_allowed() if engine.dtype == torch.float32 else None
    return remembered.key(kind, engine.dtype, *parts, precision, "graph" if engine.graphed else "calls")
