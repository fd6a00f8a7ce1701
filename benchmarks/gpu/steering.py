"""python -m benchmarks.gpu.steering: the measurements that decide which kernels are worth writing.

Torch's own convolution of every layer forward and backward, with the names of its kernels; what a matrix product reaches
on random and on ReLU'd values (half zeros draw less power); the copy; the time between two kernels of a CUDA graph.
"""

import functools
import sys

import torch

from resnet_fused.commands.progress import Progress
from resnet_fused.measure import timing
from resnet_fused.reports import table

from ..protocol import cases, ceilings, harness, options, record

PASSES = {"fprop": (), "dgrad": (True, False, False), "wgrad": (False, True, False)}
LAUNCHES = 200  # kernels in the graph whose gaps are measured


def convolution_passes(case, device, seconds):
    """{pass: (Timing, kernel names)} of torch's convolution alone."""
    first = case.arguments(device, 0)
    sets = [first] + [case.arguments(device, s) for s in range(1, timing.sets_needed(case.nbytes(first), device))]
    runs = {}
    for name, mask in PASSES.items():
        if name == "dgrad" and case.shape[1] == 3:
            continue  # the image needs no gradient
        runs[name] = [functools.partial(_pass, a, mask, _gradient(case, a) if mask else None) for a in sets]
    graph = case.shape[0] <= 32
    timings = timing.compare(
        {n: harness.rotating(r, device, graph) for n, r in runs.items()}, seconds=seconds, device=device
    )
    return {name: (timings[name], kernel_names(runs[name][0], device)) for name in runs}


def _gradient(case, a):
    out = torch.randn(case.out_shape, device=a["x"].device)
    return out.to(a["x"].dtype).contiguous(memory_format=torch.channels_last)


def _pass(a, mask, grad):
    conv = a["stride"], a["padding"], a["dilation"], False, [0, 0], a["groups"]
    if not mask:
        return torch.ops.aten.convolution(a["x"], a["weight"], None, *conv)
    return torch.ops.aten.convolution_backward(grad, a["x"], a["weight"], None, *conv, list(mask))


def kernel_names(function, device):
    """The GPU kernels of one call, longest first; nothing on a CPU."""
    if device != "cuda":
        return []
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    return [event.key for event in events if event.self_device_time_total > 0]


def products(device, dtype, seconds, small):
    """{kind of values: FLOP/s} of a large matrix product."""
    size = 256 if small else 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    positive, zero = a.relu(), torch.zeros_like(a)
    runs = {"normal": lambda: a @ b, "relu of normal": lambda: positive @ b, "zeros": lambda: zero @ zero}
    timings = timing.compare(
        {name: timing.Candidate(run) for name, run in runs.items()}, seconds=seconds, device=device
    )
    return {name: 2 * size**3 / t.median for name, t in timings.items()}


def launch_gap(device, seconds):
    """Seconds per kernel of a chain of tiny ones: in a CUDA graph, and launched one by one."""
    x = torch.zeros(32, device=device)
    runs = {"launched": harness.rotating([lambda: x.add_(1)])}
    if device == "cuda":
        runs["graph"] = harness.rotating([lambda: x.add_(1)] * LAUNCHES, device, graph=True)
    return {name: t.median for name, t in timing.compare(runs, seconds=seconds, device=device).items()}


def main(argv=None):
    made = options.parser("gpu.steering", __doc__.splitlines()[0])
    made.add_argument("--first", type=options.at_least(1), help="only so many layer shapes")
    args = options.settle(made.parse_args(argv), gpu_batches=(256, 32, 1), cpu_batches=(1,))
    seconds = 0.3 if args.seconds is None else args.seconds
    log = record.Log("steering", args.device, args.output)
    small = args.size < 224
    deadline = options.deadline(args)
    ceiling = ceilings.measure(args.device, args.dtype, seconds, small)
    dtype = str(args.dtype)[6:]
    log.add({"case": "ceilings", "dtype": dtype, **ceiling})
    log.add({"case": "matrix products", "dtype": dtype, "flops": products(args.device, args.dtype, seconds, small)})
    log.add({"case": "seconds per tiny kernel", **launch_gap(args.device, seconds)})
    model = options.model_of(args).to(memory_format=torch.channels_last)
    rows = []
    with Progress() as progress:
        for batch in args.batch:
            found = cases.collect(model, batch, args.size, args.dtype, ("conv_bn_relu",), ("forward",))
            # With or without a residual: the convolution is the same.
            distinct = {c.label.removesuffix(" +add").removesuffix(" -relu"): c for c in found}
            for case in list(distinct.values())[: args.first]:
                if deadline():
                    log.add({"cut": "out of time", "batch": batch})
                    break
                progress.step(case.label)
                for name, (t, kernels) in convolution_passes(case, args.device, seconds).items():
                    row = {
                        "case": case.label.partition(" +")[0].partition(" -r")[0], "batch": batch, "dtype": dtype,
                        "candidate": "torch", "direction": name, "tflops": case.flops / t.median / 1e12,
                        "share": case.flops / t.median / ceiling["flops"], "kernels": kernels[:3],
                        **record.timed(t),
                    }  # fmt: skip
                    log.add(row)
                    rows.append(row)
    print(text(rows))
    return 0


def text(rows):
    columns = {"case": "torch's convolution", "direction": "pass", "us": "us", "tflops": "TFLOP/s", "share": "of matmul",
               "kernels": "kernel"}  # fmt: skip
    return table.render(columns, [
        r | {"us": f"{1e6 * r['median']:.1f}", "tflops": f"{r['tflops']:.2f}", "share": f"{100 * r['share']:.0f}%",
             "kernels": (r["kernels"] or ["-"])[0][:60]}
        for r in rows
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(options.run(main, None))
