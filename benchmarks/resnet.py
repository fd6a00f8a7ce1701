"""python -m benchmarks.resnet: whole models, ours and their peers, in inference or training.

The columns: images/s with their spread, latency of single calls at the smallest batch, memory, the time to the first result
(with compiling and tuning), and the share of the error budget.
"""

import functools
import gc
import sys

import torch

from resnet_fused.commands.arguments import UsageError, at_least
from resnet_fused.commands.progress import Progress
from resnet_fused.measure import timing
from resnet_fused.measure.accuracy import budget_used, exact
from resnet_fused.measure.oracle import by_modules, in_float64, with_lively_norms
from resnet_fused.reports import table

from .peers import peers
from .protocol import harness, options, record

LATENCY_UP_TO = 1  # images: at which single calls are timed
LATENCY_CALLS = {"cpu": 50, "cuda": 500}
COLUMNS = {"batch": "batch", "candidate": "model", "ms": "ms", "p20": "p20", "p80": "p80", "rate": "images/s",
           "eager": "vs eager", "peer": "vs best peer", "p50": "call ms", "p99": "p99", "memory": "MB",
           "first": "first s", "budget": "of budget"}  # fmt: skip
OURS = ("live", "frozen")


def is_ours(name):
    return name.startswith(OURS)


def run_inference(model, x, chosen, seconds, log, step, deadline, neighbours=0):
    """Rows for one batch. A peer that cannot run is a row that says why."""
    device, rows, runs = x.device.type, {}, {}
    few = x[:8]
    with torch.no_grad():
        eager = by_modules(model)(few)
        oracle = in_float64(model)(exact(few))
    for name, make in peers.inference(model, x).items():
        if chosen and name not in chosen:
            continue
        rows[name] = {"mode": "infer", "candidate": name, "kind": "ours" if is_ours(name) else "peer"}
        if deadline():
            rows[name]["missing"] = "out of time"
            continue
        step(f"batch {len(x)}: {name}")
        try:
            with torch.no_grad():
                run, out, first = harness.first_result(make, x, device)
        except (peers.Missing, NotImplementedError) as why:
            rows[name]["missing"] = str(why)
            continue
        except Exception as error:  # of any compiler; the row says so, and of our models the exit status as well
            rows[name]["missing"] = f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"
            continue
        rows[name] |= {"first_result": first, "budget": _share(out[: len(few)], eager, oracle)}
        if is_ours(name) and not rows[name]["budget"] <= 1:
            rows[name]["wrong"] = f"{rows[name]['budget']:.2f} of the error budget: not timed"
            continue
        runs[name] = torch.no_grad()(functools.partial(run, _input(name, x)))
    with harness.beside(neighbours):  # not while kernels are chosen and compiled
        _time(rows, runs, device, seconds, len(x), step)
    for name, run in runs.items():
        rows[name]["peak_bytes"] = harness.peak_bytes(run, device)
    if len(x) <= LATENCY_UP_TO and runs:
        step(f"batch {len(x)}: single calls")
        with harness.beside(neighbours):
            latencies = harness.latencies(runs, device, LATENCY_CALLS[device] if seconds else 5)
        for name, ordered in latencies.items():
            rows[name] |= {"call_p50": harness.percentile(ordered, 0.5), "call_p99": harness.percentile(ordered, 0.99)}
    return _finish(rows, x, log)


def _share(out, eager, oracle):
    """The share of the error budget of `out`, in eager's dtype, whatever dtype a peer returns."""
    return budget_used(out.to(eager.dtype), eager, oracle, channel_dim=None)


def _input(name, x):
    """`x` in the layout that is best for the model: channels_last for all but those that would copy it."""
    plain = ("eager", "onnxruntime", "openvino")
    return x if name in plain else x.contiguous(memory_format=torch.channels_last)


def run_training(model, x, chosen, seconds, log, step, deadline, neighbours=0):
    """Rows for one batch: forward, loss, backward and SGD with momentum; autocast where x is no float32."""
    device, rows, runs = x.device.type, {}, {}
    target = torch.randint(model.fc.out_features, (len(x),), device=device)
    for name, make in peers.training(model, x).items():
        if chosen and name not in chosen:
            continue
        rows[name] = {"mode": "train", "candidate": name, "kind": "ours" if is_ours(name) else "peer"}
        if deadline():
            rows[name]["missing"] = "out of time"
            continue
        step(f"batch {len(x)}: {name}")
        try:
            run, _, rows[name]["first_result"] = harness.first_result(
                lambda make=make: _step(make(), target, x.dtype), _input(name, x.float()), device
            )
        except Exception as error:
            rows[name]["missing"] = f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"
            continue
        runs[name] = functools.partial(run, _input(name, x.float()))
    with harness.beside(neighbours):  # not while kernels are chosen and compiled
        _time(rows, runs, device, seconds, len(x), step)
    for name, run in runs.items():
        rows[name]["peak_bytes"] = harness.peak_bytes(run, device)
    return _finish(rows, x, log)


def _step(model, target, dtype):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run(x):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def _time(rows, runs, device, seconds, images, step):
    timings = timing.compare(
        {name: timing.Candidate(run) for name, run in runs.items()}, seconds=seconds, device=device,
        on_round=lambda i: step(f"batch {images}: round {i + 1}"),
    )  # fmt: skip
    peer_times = [t for name, t in timings.items() if not is_ours(name)]
    best = min(peer_times, key=lambda t: t.median) if peer_times else None
    for name, t in timings.items():
        rows[name] |= record.timed(t, images)
        rows[name]["vs_eager"] = t.speedup_over(timings["eager"]) if "eager" in timings else None
        rows[name]["vs_peer"] = t.speedup_over(best) if best else None


def _finish(rows, x, log):
    for row in rows.values():
        row |= {"batch": len(x), "size": x.shape[-1], "dtype": str(x.dtype)[6:]}
        log.add(row)
    return list(rows.values())


def text(rows):
    """The rows as a table, and the peers that are missing."""

    def ms(row, key):
        return f"{1e3 * row[key]:.2f}" if row.get(key) is not None else "-"

    def number(row, key, form):
        return form.format(row[key]) if row.get(key) is not None else "-"

    there = [r for r in rows if "missing" not in r]
    lines = [table.render(COLUMNS, [
        {
            "batch": r["batch"], "candidate": r["candidate"], "ms": "WRONG" if "wrong" in r else ms(r, "median"),
            "p20": ms(r, "p20"), "p80": ms(r, "p80"), "rate": number(r, "images_per_second", "{:.1f}"),
            "eager": number(r, "vs_eager", "{:.2f}x"), "peer": number(r, "vs_peer", "{:.2f}x"),
            "p50": ms(r, "call_p50"), "p99": ms(r, "call_p99"),
            "memory": f"{r['peak_bytes'] / 1e6:.0f}" if r.get("peak_bytes") is not None else "-",
            "first": number(r, "first_result", "{:.1f}"), "budget": number(r, "budget", "{:.2f}"),
        }
        for r in there
    ])] if there else []  # fmt: skip
    lines += [f"missing at batch {r['batch']}: {r['candidate']}: {r['missing']}" for r in rows if "missing" in r]
    return "\n".join(lines)


def main(argv=None):
    made = options.parser("resnet", __doc__.splitlines()[0])
    made.add_argument("--mode", choices=("infer", "train"), default="infer")
    made.add_argument(
        "--neighbours", type=at_least(0), default=0, metavar="N", help="processes that are busy beside it (default: 0)"
    )
    made.add_argument("--peers", nargs="+", metavar="NAME", help="only these models (names as in the table)")
    args = options.settle(made.parse_args(argv), gpu_batches=(1, 32, 256), cpu_batches=(1, 8))
    names = known(args.mode, args.device)
    if unknown := [name for name in args.peers or () if name not in names]:
        raise UsageError(f"--peers: {unknown[0]!r} is none of {', '.join(names)}")
    rows = run(args, args.peers)
    print(text(rows))
    return (
        1
        if any("wrong" in row or (row["kind"] == "ours" and "failed" in row.get("missing", "")) for row in rows)
        else 0
    )


def known(mode, device):
    """Names of the models; none of them is made."""
    x = torch.empty(1, 3, 32, 32, device=device)
    return list((peers.inference if mode == "infer" else peers.training)(None, x))


def run(args, chosen):
    """Measures and records all batches; once the budget is spent, models that have had no turn are left out."""
    deadline = options.deadline(args)
    torch.manual_seed(0)
    model = with_lively_norms(options.model_of(args)).eval().to(args.device, memory_format=torch.channels_last)
    if args.mode == "infer":
        model = model.to(args.dtype)
    log = record.Log("resnet", args.device, args.output)
    log.head["model"] = args.model
    if args.neighbours:
        log.head["environment"]["device"] += f", beside {args.neighbours} busy process" + "es" * (args.neighbours > 1)
    rows = []
    seconds = 10.0 if args.seconds is None else args.seconds
    with Progress() as progress:
        for batch in args.batch:
            x = torch.randn(batch, 3, args.size, args.size, device=args.device).to(args.dtype)
            measure = run_inference if args.mode == "infer" else run_training
            rows += measure(model, x, chosen, seconds, log, progress.step, deadline, args.neighbours)
            torch._dynamo.reset()
            gc.collect()
    return rows


if __name__ == "__main__":
    sys.exit(options.run(main, None))
