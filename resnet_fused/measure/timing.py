"""The timing protocol: candidates take turns, so that whatever disturbs the machine disturbs them all alike.

`interleaved` and `compare`: every round runs each candidate for about `SAMPLE` seconds, in an order that rotates. Reported
are medians with the 20th and 80th percentile; a ratio is the median of the ratios within one round. Warm-up is not counted.
`fastest`: the shortest of a few calls, where a choice between kernels must not take long.
"""

import contextlib
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def on(device):
    """Context manager: a CUDA torch.device is the current one. Events, streams and graphs belong to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Trials:
    """Candidates that are tried one after the other: an error of one leaves the others.

    Whatever a compiler or a launch raises is kept (Triton's errors are no RuntimeError). An error of the device itself would
    fail every later candidate as well: it is raised. `first`: the first error that was kept, or None.
    """

    def __init__(self, device):
        self.device, self.first = device, None

    @contextlib.contextmanager
    def trial(self):
        try:
            yield
        except Exception as error:
            self.first = self.first or error
            with on(self.device):
                _synchronise(self.device.type)  # raises where the device does not answer any more


def _synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def wall_clock(function, calls, device="cpu"):
    """Seconds per call, of `calls` calls after one that is not counted."""
    function()  # not counted: the threads of the candidate before it still spin, and that candidate's data fill the caches
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
    clock = clock or functools.partial(wall_clock, device=device)
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


@dataclass(frozen=True)
class Candidate:
    """`run()` makes `calls` calls; `how`: what the clock sees ("graph", "calls", or why no graph was captured)."""

    run: Callable
    calls: int = 1
    how: str = "calls"


def rotating(functions, graph=False):
    """The Candidate that calls the next of `functions` each time: the same work on another set of arguments.

    `graph`: all of them in one CUDA graph instead. Raises RuntimeError for what cannot be captured.
    """
    if graph:
        return Candidate(capture(functions).replay, len(functions), "graph")
    turns = itertools.cycle(functions)
    return Candidate(lambda: next(turns)())


def compare(candidates, *, seconds, min_rounds=5, device="cpu", on_round=None):
    """{name: Timing of a call} of {name: Candidate}, by the clock of the device: `interleaved`."""
    if not candidates:
        return {}
    timings = interleaved(
        {name: candidate.run for name, candidate in candidates.items()},
        seconds=seconds, min_rounds=min_rounds, device=device, on_round=on_round,
        clock=cuda_clock if device == "cuda" else None,
    )  # fmt: skip
    return {name: Timing(tuple(s / candidates[name].calls for s in t.samples)) for name, t in timings.items()}


class Times(dict):
    """{name: seconds per call}. `spread`: {name: how far apart its three fastest calls lie, in shares of the time}. `load`: how
    many threads of this process waited for a core meanwhile, on average."""

    def __init__(self, seconds, spread, load):
        super().__init__(seconds)
        self.spread, self.load = spread, load


BUSY = 0.4  # load: alone at most 0.35, beside one busy process 0.46 to 1.5 (2 cores, windows of 40 ms, 2026-12-01)
FAR = 1.5  # times the fastest: candidates that are called no more
LONGER = 4  # times the seconds, where threads wait for cores: few calls then lie between two time slices
AGREE = 0.03  # spread: so small where nothing disturbed the three fastest calls
WINDOW = 0.04  # seconds: a busy process may keep a core for 4 ms, so shorter series may lie in one time slice
TASKS = Path("/proc/self/task")


def waited():
    """Seconds that the threads of this process have waited for a core until now; 0 where the system does not tell."""
    nanoseconds = 0
    for file in TASKS.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread may have ended
            nanoseconds += int(file.read_text().split()[1])
    return 1e-9 * nanoseconds


def _own_queue():
    """How many threads of torch's pool always wait, because there are more of them than cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(0, torch.get_num_threads() - cores)


class Watch:
    """How busy other processes keep the cores, from now on."""

    def __init__(self):
        self._waited, self._start = waited(), time.perf_counter()

    def load(self):
        """How many threads of this process waited for a core since then, on average."""
        took = max(1e-9, time.perf_counter() - self._start)
        return max(0.0, (waited() - self._waited) / took - _own_queue())


def fastest(candidates, *, seconds=0.0, least=3, enough=6):
    """The Times of {name: functions}: of each candidate the mean of its three fastest calls.

    In a round each candidate calls its functions one after the other, as a network calls one kernel for several layers.
    Candidates that are far slower than the fastest are dropped soon. The others go on for `enough` calls and until the three
    fastest calls of each agree; for `seconds`, or `LONGER` times that where threads wait for cores; each makes at least
    `least` calls. The fastest and not the median: whatever else runs on the machine can only make a call longer, and a
    short call often lies between two time slices. For CPUs: no device is waited for, and nothing is called before it is
    timed.
    """
    samples, left, calls = {name: [] for name in candidates}, list(candidates), 0
    watch, start, took = Watch(), time.perf_counter(), 0.0
    while calls < least or took < seconds or (took < LONGER * seconds and watch.load() > BUSY):
        for name in left:
            for function in candidates[name]:
                begun = time.perf_counter()
                function()
                samples[name].append(time.perf_counter() - begun)
        calls, took = min(len(samples[name]) for name in left), time.perf_counter() - start
        if calls >= least and took >= WINDOW:
            best = min(min(samples[name]) for name in left)
            left = [name for name in left if min(samples[name]) <= FAR * best]
            agreed = calls >= enough and all(_spread(samples[name]) <= AGREE for name in left)
            if agreed or len(left) == 1 < len(candidates):
                break
    means = {name: statistics.mean(sorted(values)[:3]) for name, values in samples.items()}
    return Times(means, {name: _spread(values) for name, values in samples.items()}, watch.load())


def _spread(values):
    first, *_, last = sorted(values)[:3]
    return (last - first) / first


def cuda_clock(function, calls):
    """Seconds per call between two CUDA events on the current stream: the clock of `interleaved` for GPUs."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def cache_bytes(device):
    """The last cache of the device ("cpu" or "cuda"), in bytes."""
    if device == "cuda":
        return torch.cuda.get_device_properties().L2_cache_size
    try:
        return max(os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE") for level in (2, 3))
    except (ValueError, OSError):  # not a name this system knows
        return 32 << 20


MOST_SETS = 64
MOST_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # of all sets: past every usual cache, small beside the memory


def sets_needed(bytes_of_one, device):
    """How many sets of arguments of that size no cache can hold together: calls that take turns over so many sets find each
    set cold."""
    most = max(1, MOST_BYTES[device] // max(1, bytes_of_one))
    return min(1 + 2 * cache_bytes(device) // max(1, bytes_of_one), most, MOST_SETS)


def capture(functions):
    """A CUDA graph that calls `functions` one after the other. They are warmed up first, since a capture may neither compile
    nor choose an algorithm. Raises RuntimeError for what cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            functions[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Only this thread is watched: in the default mode a data loader that pins memory meanwhile would end the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for function in functions:
            function()
    return graph
