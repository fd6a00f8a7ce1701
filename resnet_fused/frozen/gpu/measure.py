"""How long the candidates for a part of a GPU engine take, measured as the engine runs them: in a CUDA graph or call by
call.

A candidate that cannot run on the device, or is outside of its error budget, takes infinitely long.
"""

import functools
import math
import warnings

import torch
import torch.nn.functional as F

from ...kernels import layout
from ...measure import timing
from ...measure.accuracy import budget_used, exact
from .. import check


def compare(able, made, device, graphed, budget, what):
    """{candidate: seconds per call} of what runs `what`. `made(candidate)`: (functions that take turns, share of budget).

    Raises ValueError where nothing runs, from the first error of a candidate, and the error of a device that fails.
    """
    runs, trials = {}, timing.Trials(device)
    for candidate in able:
        with trials.trial():
            functions, share = made(candidate)
            if share <= 1:
                runs[candidate] = timing.rotating(functions, graphed)
    if not runs:
        raise ValueError(f"freeze: nothing runs {what}") from trials.first
    timings = timing.compare(runs, seconds=budget, min_rounds=3, device=device.type)
    return dict.fromkeys(able, math.inf) | {candidate: t.median for candidate, t in timings.items()}


def _input(shape, dtype, device):
    return layout.in_format(torch.randn(shape, device=device).relu_().to(dtype), layout.CHANNELS_LAST)


def _empty(step, dtype, device):
    return torch.empty(step.out_shape(), dtype=dtype, device=device, memory_format=layout.CHANNELS_LAST)


def layer(steps, able, dtype, device, graphed, budget):
    """`compare` for a convolution. Calls alternate between some `steps` of the same key, so that no weight is in the
    cache."""
    x, out = _input(steps[0].shape, dtype, device), _empty(steps[0], dtype, device)
    residual = torch.randn_like(out) if steps[0].adds else None

    def made(candidate):
        found = [candidate.make(step, dtype) for step in steps[:3]]
        share = check.layer_share(steps[0], found[0], x, residual, out)
        return [functools.partial(one, x, residual, out) for one in found], share

    return compare(able, made, device, graphed, budget, f"{steps[0].name} within the error budget in {dtype}")


def pair(steps, able, dtype, device, graphed, budget):
    """`compare` for the first convolution of a block and its projection. Candidates make layers that write both
    results."""
    x, outs = _input(steps[0].shape, dtype, device), tuple(_empty(step, dtype, device) for step in steps)

    def made(candidate):
        both = candidate.make(steps, dtype)
        shares = [
            check.layer_share(step, lambda x, *_, i=i: both(x, None, outs)[i], x, None, None)
            for i, step in enumerate(steps)
        ]
        return [functools.partial(both, x, None, outs)], max(shares)

    what = f"{steps[0].name} and {steps[1].name} within the error budget in {dtype}"
    return compare(able, made, device, graphed, budget, what)


def head(step, shape, able, dtype, device, graphed, budget):
    """`compare` for the pool and the linear layer on maps of `shape`."""
    x = _input(shape, dtype, device)

    def logits(wide):
        fc = (None if t is None else wide(t.detach().to(dtype)) for t in (step.fc.weight, step.fc.bias))
        return F.linear(torch.flatten(step.avgpool(wide(x)), 1), *fc)

    eager, oracle = logits(lambda t: t), logits(exact)

    def made(candidate):
        run = candidate.make(step, dtype)
        return [functools.partial(run, x)], budget_used(run(x), eager, oracle, channel_dim=None)

    what = f"the pool and the linear layer within the error budget in {dtype}"
    return compare(able, made, device, graphed, budget, what)


@torch.no_grad()
def beside_live(engine, example):
    """{"engine", "live"}: the Timing of a call of each, in alternation."""
    model, device = engine._model, engine.device.type
    training = [m for m in model.modules() if m.training]
    x = layout.in_format(example.to(next(model.parameters()).dtype), layout.CHANNELS_LAST)
    try:
        model.eval()
        return timing.interleaved(
            {"engine": lambda: engine(example), "live": lambda: model(x)},
            seconds=0.1, min_rounds=3, device=device, clock=timing.cuda_clock if device == "cuda" else None,
        )  # fmt: skip
    finally:
        for m in training:
            m.training = True


def warn_of_slowness(seconds):
    took = {name: f"{1e3 * s:.3f} ms" for name, s in seconds.items()}
    warnings.warn(f"freeze: the engine takes {took['engine']}, the live model {took['live']}", stacklevel=6)
