"""python -m benchmarks.gpu.latency: split convolutions in two kernels and in clusters, at the batches where latency counts.

First the bits: a cluster must give those of two kernels with its tile and slices. Then the time of a call in a CUDA graph of
many, one after the other: what is predicted to be fastest, two kernels, a cluster, a cluster that fetches its weights early.
"""

import functools
import sys

import torch

from resnet_fused import dispatch
from resnet_fused.commands.arguments import UsageError
from resnet_fused.commands.progress import Progress
from resnet_fused.kernels import cuda, library
from resnet_fused.measure import timing
from resnet_fused.reports import table

from ..protocol import cases, harness, options, record

CLUSTERS = 2  # the ones predicted to be fastest


def forms(ops, a, tf32):
    """{name: launch configuration} of what is compared for the arguments `a`; only the default where there is no cluster."""
    where = (list(a[name]) for name in ("stride", "padding", "dilation"))
    found = cuda.tiles(ops.conv_choices(a["x"], a["weight"], *where, a["groups"], 32, tf32, clusters=True))
    made = {"default": found[0]}
    for config in [c for c in found if "cluster" in c][:CLUSTERS]:
        cut = f"{config['tile']} / {config['splits']}"
        made[f"two kernels {cut}"] = {"tile": config["tile"], "splits": config["splits"]}
        made[f"cluster {cut}"] = config
        made[f"cluster {cut}, early weights"] = config | {"early_weights": True}
    return made


def call(ops, a, out, tf32, config):
    where = (list(a[name]) for name in ("stride", "padding", "dilation"))
    norm = (a[name] for name in ("mean", "var", "bn_weight", "bn_bias"))
    ops.conv_bn_relu(
        a["x"], a["weight"], *norm, a["residual"], out, *where, a["groups"], a["eps"], a["activation"], tf32, **config
    )
    return out


def compare(ops, case, device, seconds):
    """{form: Timing} of one layer. RuntimeError if a cluster has other bits than two kernels."""
    first = case.arguments(device, 0)
    sets = [first] + [case.arguments(device, s) for s in range(1, timing.sets_needed(case.nbytes(first), device))]
    tf32 = dispatch.tf32_allowed()
    empty = functools.partial(torch.empty, case.out_shape, dtype=first["x"].dtype, device=device)
    outs = [empty().contiguous(memory_format=torch.channels_last) for _ in sets]
    runs, two = {}, None
    for name, config in forms(ops, first, tf32).items():
        out = call(ops, first, outs[0].fill_(torch.nan), tf32, config).clone()
        if "cluster" not in config:
            two = out
        elif not torch.equal(out, two):
            raise RuntimeError(f"{case.label}: {name} has other bits than two kernels")
        functions = [functools.partial(call, ops, a, o, tf32, config) for a, o in zip(sets, outs, strict=True)]
        runs[name] = harness.rotating(functions, device, graph=True)
    return timing.compare(runs, seconds=seconds, device=device)


def main(argv=None):
    args = options.settle(options.parser("gpu.latency", __doc__.splitlines()[0]).parse_args(argv), (1, 8), (1,))
    if args.device != "cuda":
        raise UsageError("argument --device: clusters of blocks need a GPU, but it is cpu")
    if (why := cuda.why_not(torch.device("cuda"))) is not None:
        raise UsageError(why)
    seconds = 0.3 if args.seconds is None else args.seconds
    log, deadline = record.Log("latency", args.device, args.output), options.deadline(args)
    model = options.model_of(args).to(memory_format=torch.channels_last)
    rows = []
    with Progress() as progress:
        for batch in args.batch:
            for case in cases.collect(model, batch, args.size, args.dtype, ("conv_bn_relu",), ("forward",)):
                if case.shape[1] % 8 != 0:
                    continue  # the image
                if deadline():
                    log.add({"cut": "out of time", "batch": batch})
                    break
                progress.step(case.label)
                for name, t in compare(library.namespace(), case, args.device, seconds).items():
                    row = {"case": case.label, "batch": batch, "dtype": str(args.dtype)[6:], "candidate": name,
                           "count": case.count, **record.timed(t)}  # fmt: skip
                    log.add(row)
                    rows.append(row)
    print(text(rows))
    return 0


def text(rows):
    columns = {"case": "convolution", "candidate": "form", "us": "us"}
    return table.render(columns, [r | {"us": f"{1e6 * r['median']:.1f}"} for r in rows])


if __name__ == "__main__":
    sys.exit(options.run(main, None))
