"""The protocol of every benchmark; docs/results/how-measured.md explains it.

- Candidates take turns (resnet_fused/measure/timing.py): whatever disturbs the machine disturbs them all alike. Whole models
  on a CPU have a process each (apart.py).
- Compiling, tuning, packing and warming up come first and are never part of a sample.
- Arguments come in several sets, larger together than twice the last cache, and every call takes the next set.
- On a GPU the clock is a pair of CUDA events around many calls. With `graph` all sets are captured in one CUDA graph, so that
  a sample has no launch overhead: for kernels of small batches, whose launches take longer than they do.
- Reported are the median, the 20th and the 80th percentile over rounds.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time

import torch

from resnet_fused.measure import timing

TRIES = 3
DISTURBED = 0.1  # of one core, by other processes
RESOLUTION = 0.02  # seconds: the kernel counts in steps of 10 ms on each core


@contextlib.contextmanager
def beside(neighbours):
    """Runs `neighbours` processes that never sleep, as a busy machine does."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def others_seconds():
    """Seconds of CPU that all other processes of the machine have had; None where the system does not tell."""
    try:
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except OSError:
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def undisturbed(measure):
    """(result of `measure()`, whether others disturbed it): taken again, up to TRIES times, while they did."""
    for _ in range(TRIES):
        before, start = others_seconds(), time.perf_counter()
        result = measure()
        if before is None:
            return result, False
        if others_seconds() - before <= RESOLUTION + DISTURBED * (time.perf_counter() - start):
            return result, False
    return result, True


def rotating(functions, device="cpu", graph=False):
    """`timing.rotating`. Functions that no CUDA graph can capture are timed call by call, and `how` says why."""
    if not (graph and device == "cuda"):
        return timing.rotating(functions)
    try:
        return timing.rotating(functions, graph=True)
    except Exception as error:  # whatever a capture raises
        why = f"calls, no graph: {(str(error) or type(error).__name__).splitlines()[0]}"
        return dataclasses.replace(timing.rotating(functions), how=why)


def single_calls(function, device, calls):
    """Seconds of each of `calls` calls one after the other, each waited for, after one that is not counted."""
    samples = []
    for _ in range(calls + 1):
        _synchronise(device)
        start = time.perf_counter()
        function()
        _synchronise(device)
        samples.append(time.perf_counter() - start)
    return samples[1:]


def percentile(ordered, q):
    return ordered[round(q * (len(ordered) - 1))]


def first_result(make, x, device):
    """(function, its first result, seconds from `make` to that result, compiling and tuning included)."""
    _synchronise(device)
    start = time.perf_counter()
    function = make()
    result = function(x)
    _synchronise(device)
    return function, result, time.perf_counter() - start


def peak_bytes(function, device):
    """Bytes that one call allocates on top of what is allocated. On a CPU: what the process grows by. That is a lower bound,
    since an allocator may reuse memory that it kept from earlier calls."""
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
