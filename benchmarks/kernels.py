"""python -m benchmarks.kernels: every backend and every peer on every layer shape of a model, forward and backward.

A kernel of this package that is outside of its error budget gets no time: it is reported as wrong.
"""

import collections
import functools
import sys

import torch

from resnet_fused.commands.arguments import UsageError
from resnet_fused.commands.progress import Progress
from resnet_fused.measure import timing
from resnet_fused.reports import table

from .protocol import candidates, cases, ceilings, gate, harness, options, record

GRAPHS_UP_TO = 32  # images: beyond it a kernel takes longer than its launch
COLUMNS = {"case": "case", "candidate": "candidate", "us": "us", "p20": "p20", "p80": "p80", "tflops": "TFLOP/s",
           "gbs": "GB/s", "ceiling": "of ceiling", "eager": "vs eager", "peer": "vs best peer",
           "budget": "of budget"}  # fmt: skip


def run_case(case, device, peers, seconds, ceiling):
    """Rows of one case; times are compared round by round."""
    first = case.arguments(device, 0)
    nbytes = case.nbytes(first)
    sets = [first]
    sets += [case.arguments(device, seed) for seed in range(1, timing.sets_needed(nbytes, device))]
    graph = case.direction == "forward" and case.shape[0] <= GRAPHS_UP_TO
    timed, rows = {}, {}
    prepare, made = (_forward, candidates.forward) if case.direction == "forward" else (_backward, candidates.backward)
    context = prepare(case, device, sets)
    for name, (kind, make) in made(case, device, peers).items():
        row = {
            "op": case.op, "direction": case.direction, "case": case.label, "batch": case.shape[0],
            "dtype": str(case.call["x"].dtype)[6:], "count": case.count, "candidate": name, "kind": kind,
            "flops": case.flops, "bytes": nbytes, "sets": len(sets),
        }  # fmt: skip
        try:
            functions, share = context(name, make)
        except Exception as error:  # of any compiler; the row says so, and of our kernels the exit status as well
            rows[name] = row | {"failed": (str(error) or type(error).__name__).splitlines()[0]}
            continue
        if functions is None:
            continue  # the backend handed the call on to another one, which has a row of its own
        rows[name] = row | {"budget": share}
        if kind == "ours" and not share <= 1:
            rows[name]["wrong"] = f"{share:.2f} of the error budget: not timed"
        else:
            timed[name] = harness.rotating(functions, device, graph)
    timings = timing.compare(timed, seconds=seconds, device=device)
    peer_times = [t for name, t in timings.items() if rows[name]["kind"] == "peer"]
    for name, t in timings.items():
        rows[name] |= record.timed(t) | {
            "how": timed[name].how,
            "tflops": case.flops / t.median / 1e12,
            "gbs": nbytes / t.median / 1e9,
            "ceiling": ceilings.share(ceiling, case.flops, nbytes, t.median),
            "vs_eager": t.speedup_over(timings["eager"]) if "eager" in timings else None,
            "vs_peer": t.speedup_over(min(peer_times, key=lambda p: p.median)) if peer_times else None,
        }
    return list(rows.values())


def _forward(case, device, sets):
    """A function (name, maker) -> (calls on every set or None, share of the error budget)."""
    checker = gate.Forward(case, sets[0])

    def context(name, make):
        with torch.no_grad():
            itself, out = candidates.runs_itself(name, make(sets[0]))
            if not itself:
                return None, None
            return [torch.no_grad()(make(a)) for a in sets], checker.share(out)

    return context


def _backward(case, device, sets):
    """The same for functions that are differentiated; one forward per set, whose graph is kept."""
    grads = [torch.randn(case.out_shape, device=device).to(sets[0]["x"].dtype) for _ in sets]
    grads = [g.contiguous(memory_format=torch.channels_last) for g in grads]
    checker = gate.Backward(case, sets[0], grads[0])

    def context(name, function):
        runs, share = [], None
        for a, grad in zip(sets, grads, strict=True):
            named, leaves = case.differentiable(a)
            forward = candidates.under(name, functools.partial(case.run, function, named))
            itself, out = candidates.runs_itself(name, forward)
            if not itself:
                return None, None
            run = functools.partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)
            runs.append(candidates.under(name, run))
            share = checker.share(out, runs[0]()) if share is None else share
        return runs, share

    return context


def text(rows):
    """The rows as a table."""

    def cell(row, key, form):
        return form.format(row[key]) if row.get(key) is not None else "-"

    return table.render(COLUMNS, [
        {
            "case": f"{r['op']} {r['direction']} {r['case']}", "candidate": r["candidate"],
            "us": f"{1e6 * r['median']:.1f}" if "median" in r else "WRONG" if "wrong" in r else "failed",
            "p20": f"{1e6 * r['p20']:.1f}" if "p20" in r else "-",
            "p80": f"{1e6 * r['p80']:.1f}" if "p80" in r else "-",
            "tflops": cell(r, "tflops", "{:.2f}") if r["flops"] else "-", "gbs": cell(r, "gbs", "{:.1f}"),
            "ceiling": f"{100 * r['ceiling']:.0f}%" if "ceiling" in r else "-",
            "eager": cell(r, "vs_eager", "{:.2f}x"), "peer": cell(r, "vs_peer", "{:.2f}x"),
            "budget": cell(r, "budget", "{:.2f}"),
        }
        for r in rows
    ])  # fmt: skip


def main(argv=None):
    made = options.parser("kernels", __doc__.splitlines()[0])
    made.add_argument("--op", choices=cases.OPS, nargs="+", default=list(cases.OPS))
    made.add_argument("--direction", choices=cases.DIRECTIONS, nargs="+", default=list(cases.DIRECTIONS))
    made.add_argument("--peers", choices=candidates.PEERS, nargs="*", help="default: all; on a CPU not compile (slow)")
    made.add_argument("--first", type=options.at_least(1), help="only so many cases of each op and direction")
    args = options.settle(made.parse_args(argv), gpu_batches=(1, 32, 256), cpu_batches=(1, 8))
    if min(args.batch) == 1 and args.size <= 32 and "bn_relu" in args.op:
        raise UsageError("--op bn_relu trains, which needs more than one value per channel: a larger --batch or --size")
    peers = args.peers if args.peers is not None else candidates.PEERS[: 3 if args.device == "cuda" else 2]
    rows = run(args, peers)
    print(text(rows))
    return 1 if any("wrong" in row or ("failed" in row and row["kind"] == "ours") for row in rows) else 0


def run(args, peers):
    """Measures and records every case, until the budget is spent."""
    deadline = options.deadline(args)
    model = options.model_of(args).to(args.device, memory_format=torch.channels_last)
    log = record.Log("kernels", args.device, args.output)
    log.head["model"] = args.model
    seconds = 1.0 if args.seconds is None else args.seconds
    rows = []
    with Progress() as progress:
        progress.step("ceilings")
        ceiling = ceilings.measure(args.device, args.dtype, small=args.size < 224)
        log.add({"case": "ceilings", "dtype": str(args.dtype)[6:], **ceiling})
        for case in chosen(args, model):
            if deadline():
                log.add({"op": case.op, "cut": f"out of time before {case.label}"})
                break
            progress.step(f"{case.op} {case.direction} {case.label}")
            for row in run_case(case, args.device, peers, seconds, ceiling):
                log.add(row)
                rows.append(row)
    return rows


def chosen(args, model):
    """The cases that the arguments ask for."""
    for batch in args.batch:
        seen = collections.Counter()
        for case in cases.collect(model, batch, args.size, args.dtype, args.op, args.direction):
            kind = case.op, case.direction
            seen[kind] += 1
            # No one trains with one image, and at that batch a launch takes longer than its kernel.
            of_training = case.direction == "backward" or case.op in ("bn_relu", "add_relu")
            training = batch == 1 and args.device == "cuda" and of_training
            if not training and (args.first is None or seen[kind] <= args.first):
                yield case


if __name__ == "__main__":
    sys.exit(options.run(main, None))
