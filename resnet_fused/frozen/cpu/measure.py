"""How long the kernels of a frozen network take on this CPU: the fastest of several calls of each.

The number is the fastest call and not the median, because other programs on the machine can only make a call longer.
"""

import time

import torch

from ...kernels import layout


def layer(steps, candidates, dtype, seconds):
    """{candidate: seconds per call}. Calls alternate between some `steps` of the same key, so that their weights are
    not in the cache."""
    x = torch.randn(steps[0].shape).relu_().to(dtype).contiguous(memory_format=layout.CHANNELS_LAST)
    steps = steps[:3]  # so many keep the weights out of the cache; packing more would only take time
    runs = {candidate: [candidate(step, dtype) for step in steps] for candidate in candidates}
    residual = torch.zeros_like(runs[candidates[0]][0](x)) if steps[0].adds else None
    samples = {candidate: [] for candidate in candidates}
    rounds, start = samples[candidates[-1]], time.perf_counter()
    while len(rounds) < 3 or (time.perf_counter() - start < seconds and len(rounds) < 25):
        for candidate in candidates:
            before = time.perf_counter()
            for run in runs[candidate]:
                run(x) if residual is None else run(x, residual)
            samples[candidate].append((time.perf_counter() - before) / len(steps))
    return {candidate: min(s) for candidate, s in samples.items()}


def network(run, x, calls=7):
    """Seconds per call. A first call, which allocates, is not measured."""
    run(x)
    samples = []
    for _ in range(calls):
        before = time.perf_counter()
        run(x)
        samples.append(time.perf_counter() - before)
    return min(samples)
