"""The protocol of every benchmark; docs/benchmarks.md explains it.

- Candidates take turns (resnet_fused/measure/timing.py): whatever disturbs the machine disturbs them all alike.
- Compiling, tuning, packing and warming up come first and are never part of a sample.
- Arguments come in several sets, larger together than twice the last cache, and every call takes the next set.
- On a GPU the clock is a pair of CUDA events around many calls. With `graph` all sets are captured in one CUDA graph,
  so that a sample contains no launch overhead: for kernels of small batches, where the caller is what takes time.
- Reported are the median, the 20th and the 80th percentile over rounds.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable

import torch

from resnet_fused.measure import timing


@dataclasses.dataclass
class Candidate:
    """`run()` makes `calls` calls; `how`: what the clock sees ("graph", "calls", or why no graph was captured)."""

    run: Callable
    calls: int = 1
    how: str = "calls"


def rotating(functions, device="cpu", graph=False):
    """Candidate that calls the next of `functions` each time: the same work on another set of arguments."""
    why = None
    if graph and device == "cuda":
        try:
            return Candidate(timing.capture(functions).replay, len(functions), "graph")
        except Exception as error:  # what cannot be captured is timed call by call, and the row says so
            why = f"calls, no graph: {(str(error) or type(error).__name__).splitlines()[0]}"
    turns = itertools.cycle(functions)
    return Candidate(lambda: next(turns)(), 1, why or "calls")


def measure(candidates, device, seconds, min_rounds=5, on_round=None):
    """{name: Timing} per call for {name: Candidate}; a round has one sample of each, in an order that rotates."""
    if not candidates:
        return {}
    timings = timing.interleaved(
        {name: candidate.run for name, candidate in candidates.items()},
        seconds=seconds, min_rounds=min_rounds, device=device, on_round=on_round,
        clock=timing.cuda_clock if device == "cuda" else None,
    )  # fmt: skip
    return {
        name: timing.Timing(tuple(sample / candidates[name].calls for sample in t.samples))
        for name, t in timings.items()
    }


def latencies(functions, device, calls, on_round=None):
    """{name: sorted seconds of single calls}, each waited for, the functions taking turns: for percentiles of latency."""
    samples = {name: [] for name in functions}
    for i in range(calls + 3):
        if on_round is not None:
            on_round(i)
        for name, function in functions.items():
            _synchronise(device)
            start = time.perf_counter()
            function()
            _synchronise(device)
            if i >= 3:  # warm
                samples[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in samples.items()}


def percentile(ordered, q):
    return ordered[round(q * (len(ordered) - 1))]


def first_result(make, x, device):
    """(function, its first result, seconds): what somebody waits who starts it now, compiling and tuning included."""
    _synchronise(device)
    start = time.perf_counter()
    function = make()
    result = function(x)
    _synchronise(device)
    return function, result, time.perf_counter() - start


def peak_bytes(function, device):
    """Memory that one call needs on top of what is there. On a CPU it is what the process grows by: memory that an
    allocator kept from earlier calls does not count, so the figure is a lower bound."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # sets the high-water mark to the present size
        before = _status("VmRSS")
        function()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith(key + ":"))


def _synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()
