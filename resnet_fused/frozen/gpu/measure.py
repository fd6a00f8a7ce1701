"""How long the ways to run a part of a static engine take: as it will run them, in a CUDA graph or call by call.

A way that cannot run there, or is outside of its error budget, takes infinitely long.
"""

import functools
import itertools
import math

import torch
import torch.nn.functional as F

from ...kernels import layout
from ...measure import timing
from ...measure.accuracy import budget_used, exact
from . import check, layers


def _run_of(functions, graphed):
    """(function, calls in it) of functions that make a call each."""
    if graphed:
        return timing.capture(functions).replay, len(functions)
    turns = itertools.cycle(functions)
    return lambda: next(turns)(), 1


def compare(able, made, device, graphed, budget):
    """{way: seconds per call}, {} if nothing runs. `made(way)`: (functions that take turns, share of the error budget)."""
    runs = {}
    for way in able:
        try:
            functions, share = made(way)
            if share <= 1:
                runs[way] = _run_of(functions, graphed)
        # Whatever a compiler or a launch raises (Triton's errors are no RuntimeError): another way will do.
        except Exception:  # noqa: S112
            continue
    if not runs:
        return {}
    clock = timing.cuda_clock if device.type == "cuda" else None
    functions = {way: run for way, (run, _) in runs.items()}
    timings = timing.interleaved(functions, seconds=budget, min_rounds=3, device=device.type, clock=clock)
    return dict.fromkeys(able, math.inf) | {way: t.median / runs[way][1] for way, t in timings.items()}


def _input(shape, dtype, device):
    return layout.in_format(torch.randn(shape, device=device).relu_().to(dtype), layout.CHANNELS_LAST)


def _empty(site, dtype, device):
    shape = layers.out_shape(site)
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout.CHANNELS_LAST)


def layer(sites, able, dtype, device, graphed, budget):
    """`compare` for a convolution, in turn over some `sites` of the same shapes, so that no weight is hot."""
    x, out = _input(sites[0].shape, dtype, device), _empty(sites[0], dtype, device)
    residual = torch.randn_like(out) if sites[0].residual else None

    def made(way):
        found = [way.make(site, dtype) for site in sites[:3]]
        share = check.layer_shares(sites[0], found[0], x, residual, out)[0]
        return [functools.partial(one, x, residual, out) for one in found], share

    seconds = compare(able, made, device, graphed, budget)
    if not seconds:
        raise ValueError(f"freeze: nothing runs {sites[0].name} within the error budget in {dtype}")
    return seconds


def pairs(block, able, dtype, device, graphed, budget):
    """`compare` for the first convolution of `block` and its projection; ways make layers that write both."""
    sites = block.sites[0], block.projection
    x, outs = _input(sites[0].shape, dtype, device), tuple(_empty(site, dtype, device) for site in sites)

    def made(way):
        pair = way.make(block, dtype)
        shares = [
            check.layer_shares(site, lambda x, *_, i=i: pair(x, None, outs)[i], x, None, None)[0]
            for i, site in enumerate(sites)
        ]
        return [functools.partial(pair, x, None, outs)], max(shares)

    return compare(able, made, device, graphed, budget)


def heads(model, shape, able, dtype, device, graphed, budget):
    """`compare` for pool and linear layer on maps of `shape`."""
    x = _input(shape, dtype, device)

    def logits(wide):
        fc = (None if t is None else wide(t.detach().to(dtype)) for t in (model.fc.weight, model.fc.bias))
        return F.linear(torch.flatten(model.avgpool(wide(x)), 1), *fc)

    eager, oracle = logits(lambda t: t), logits(exact)

    def made(way):
        head = way.make(model, dtype)
        return [functools.partial(head, x)], budget_used(head(x), eager, oracle, channel_dim=None)

    return compare(able, made, device, graphed, budget)
