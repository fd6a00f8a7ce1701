"""python -m benchmarks.host: what Python, dispatchers and C++ take per call when no kernel runs, ours beside eager.

Everything runs but the kernels: an allocation adds to a counter, a launcher returns at once (tests/emulator/pretended.py).
Prints a table; --keep appends the rows to benchmarks/results/host-time-cpu.jsonl and writes docs/results/host-time.md.
"""

from .networks import Case  # noqa: I001 (before torch)

import argparse
import time
from pathlib import Path

import torch

from resnet_fused import dispatch
from resnet_fused.kernels.epilogue import RELU
from resnet_fused.measure import timing

from ..protocol import record

PAGE = Path(__file__).resolve().parents[2] / "docs/results/host-time.md"
CASES = (
    Case("resnet34", 2, 224, "bfloat16", True),
    Case("resnet34", 2, 224, "autocast", True),
    Case("resnet34", 2, 224, "float32", True),
    Case("resnet50", 2, 224, "bfloat16", True),
)
TEXT = """# Host time

What Python, the dispatchers and C++ take per call on a CUDA device that is not there, with kernels that do nothing:
**measured** on {device}, two cores free, torch {torch}, {run} UTC (commit {commit}), by
`python -m benchmarks.host`. 20th percentiles of the process's CPU time in milliseconds; the candidates took turns. The step
is a forward and a backward pass without an optimiser; its CPU time is that of both threads. A GPU whose kernels take
longer than this hides it.

| network, images, weights | | eager | ours |
|---|---|--:|--:|
{rows}

One `conv_bn_relu` of 64 channels takes {direct:.1f} us by its public function, and {op:.1f} us as an op of torch's
dispatcher, as `torch.compile` calls it. Allocations of the real caching allocator and the driver's launches (2 to 4 us
each, predicted) come on top of all numbers, eager's and ours. No Triton kernel is part of this page.

Eager's numbers have no cuDNN: its search for an algorithm and its descriptors come on top on a GPU.

An evaluation is one call of the library a block, 10 us for two convolutions. Before it, 7 us check the block (hooks, classes,
layouts) and 10 us read its modules. A step is one call a layer in each direction. Of 3.7 ms those calls take 0.2 ms forward
and 0.4 ms backward, the checks of all modules and their lists of arguments 0.5 ms, the running statistics 0.2 ms, the stem,
which still runs pass by pass, 0.4 ms, and torch's engine and `zero_grad` 1.1 ms, as in eager (measured: bfloat16 ResNet-34,
the least of 12 samples of each part).

In turn with the code before, in one run (bfloat16 ResNet-34, 2026-12-01), an evaluation took 0.68 ms instead of 0.80, a step
3.74 instead of 8.38, under autocast 0.88 instead of 2.15 and 4.02 instead of 8.30, and an op 23.6 us instead of 36.8. Steps of
two runs differ by a factor of up to 1.4, eager's as well.

The aims are 0.7 ms for an evaluation of ResNet-34, 4.5 ms for its step and 12 us for an op of `torch.compile`. Bfloat16
reaches the first two. Autocast cannot reach the first: it also casts 36 weights, as in eager. An op is above its aim.
The launcher of the library, with its checks and its list of arguments, takes 6 us, the dispatcher's call into Python
5 us, the kernel for autograd 3 us, the question which kernel runs 4 us. Only an op in C++ would need none of the last three,
and it would need the dispatcher's answers in C++: backends asked for, measured times, verdicts of the check of a device.
"""


def cpu_clock(function, calls):
    """Seconds of CPU time per call, of all threads: what waits for a core does not count."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def one_op():
    """{name: function} for one convolution, by its function and by the dispatcher."""
    x = torch.empty(2, 64, 56, 56, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight = torch.empty(64, 64, 3, 3, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    vectors = [torch.empty(64, device="cuda") for _ in range(4)]
    op, pair = torch.ops.resnet_fused.conv_bn_relu.default, [1, 1]
    from resnet_fused.ops import conv_bn_relu

    mean, var, bn_weight, bn_bias = vectors
    sides = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
    return {
        "direct": lambda: conv_bn_relu(x, weight, bn_weight, bn_bias, mean, var, **sides),
        "op": lambda: op(x, weight, mean, var, bn_weight, bn_bias, None, pair, pair, pair, 1, 1e-5, RELU),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each network and mode")
    parser.add_argument("--keep", action="store_true", help="append the rows, and write the page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = record.Log("host-time", "cpu") if args.keep else None
    rows, last = [], {}
    for case in CASES:
        model, eager, x = case.made()
        for mode in ("evaluation", "step"):
            calls = {"eager": case.call(eager, x, mode), "ours": case.call(model, x, mode)}
            timings = timing.interleaved(calls, seconds=args.seconds, clock=cpu_clock)
            row = f"| {case} | {mode} | {1e3 * timings['eager'].p20:.2f} | {1e3 * timings['ours'].p20:.2f} |"
            print(row, flush=True)
            rows.append(row)
            for name, t in timings.items() if log else ():
                log.add({"mode": mode, "case": str(case), "candidate": name, **record.timed(t)})
    with torch.no_grad(), dispatch.strict():
        for name, t in timing.interleaved(one_op(), seconds=args.seconds, clock=cpu_clock).items():
            last[name] = 1e6 * t.p20
            print(f"one convolution, {name}: {last[name]:.1f} us", flush=True)
            if log:
                log.add({"mode": "evaluation", "case": "conv_bn_relu", "candidate": name, **record.timed(t)})
    if log:
        facts = log.head["environment"] | {"run": log.head["run"]}
        PAGE.write_text(TEXT.format(rows="\n".join(rows), **last, **facts))


if __name__ == "__main__":
    main()
