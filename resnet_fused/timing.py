"""The timing protocol: candidates take turns, so that whatever disturbs the machine disturbs them all alike.

Every round runs each candidate for about `SAMPLE` seconds, in an order that rotates. Reported are medians with the 20th
and 80th percentile; a ratio is the median of the ratios within one round. Warm-up is not counted.
"""

import functools
import statistics
import time
from dataclasses import dataclass

import torch

SAMPLE = 0.02  # seconds: far above the resolution of the clock and the cost of a synchronisation


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self):
        return statistics.median(self.samples)

    @property
    def p20(self):
        return self._quantile(0.2)

    @property
    def p80(self):
        return self._quantile(0.8)

    def _quantile(self, q):
        ordered = sorted(self.samples)
        return ordered[round(q * (len(ordered) - 1))]

    def speedup_over(self, other):
        """How many times faster than `other`, round by round."""
        return statistics.median(b / a for a, b in zip(self.samples, other.samples, strict=True))


def _synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def _sample(function, calls, device="cpu"):
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronise(device)
    return (time.perf_counter() - start) / calls


def interleaved(candidates, *, seconds=10.0, min_rounds=5, device="cpu", on_round=None, clock=None):
    """{name: Timing} of `candidates`, {name: function without arguments}.

    Rounds go on for about `seconds`, but there are at least `min_rounds`. `on_round(i)` is called before every round.
    `clock(function, calls)`: seconds per call; by default the wall clock, with the device synchronised.
    """
    clock = clock or functools.partial(_sample, device=device)
    calls = {}
    for name, function in candidates.items():
        clock(function, 2)  # warms up: compiles, packs, fills caches
        calls[name] = max(1, round(SAMPLE / clock(function, 1)))
    names, samples = list(candidates), {name: [] for name in candidates}
    start, rounds = time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - start < seconds:
        if on_round is not None:
            on_round(rounds)
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(clock(candidates[name], calls[name]))
        rounds += 1
    return {name: Timing(tuple(values)) for name, values in samples.items()}
