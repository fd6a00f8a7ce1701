"""How long the kernels of a frozen network take on this CPU: the fastest of several calls of each (timing.fastest)."""

import functools

import torch

from ...kernels import layout
from ...measure import timing


def layer(steps, candidates, dtype, seconds):
    """The Times of the candidates. Calls alternate between some `steps` of the same key, so that their weights are
    not in the cache."""
    x = torch.randn(steps[0].shape, device="cpu").relu_().to(dtype).contiguous(memory_format=layout.CHANNELS_LAST)
    steps = steps[:3]  # so many keep the weights out of the cache; packing more would only take time
    runs = {candidate: [candidate(step, dtype) for step in steps] for candidate in candidates}
    arguments = (x, torch.zeros_like(runs[candidates[0]][0](x))) if steps[0].adds else (x,)
    calls = {candidate: [functools.partial(run, *arguments) for run in loaded] for candidate, loaded in runs.items()}
    return timing.fastest(calls, seconds=seconds)


def networks(ways, x, seconds):
    """The Times of {way: function of x}. Each has run before, since its first call allocates."""
    return timing.fastest({way: [functools.partial(run, x)] for way, run in ways.items()}, seconds=seconds, enough=3)
