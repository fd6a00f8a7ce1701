"""python -m benchmarks.resnet: whole models, ours and their peers, in inference or training.

The columns: images/s with their spread, latency of single calls at the smallest batch, memory, the time to the first result
(with compiling and tuning), the largest error against float64, and the share of the error budget. On a CPU every model has a
process of its own.
"""

import contextlib
import gc
import sys

import torch

from resnet_fused.commands.arguments import UsageError, at_least
from resnet_fused.commands.progress import Progress
from resnet_fused.measure import timing
from resnet_fused.reports import table

from .peers import peers
from .peers.contestant import MODES, Gate, Task, starter
from .protocol import apart, harness, options, record

LATENCY_UP_TO = 1  # images: at which single calls are timed
LATENCY_CALLS = {"cpu": 50, "cuda": 500}
COLUMNS = {"batch": "batch", "candidate": "model", "ms": "ms", "p20": "p20", "p80": "p80", "rate": "images/s",
           "eager": "vs eager", "peer": "vs best peer", "p50": "call ms", "p99": "p99", "memory": "MB",
           "first": "first s", "error": "error", "budget": "of budget"}  # fmt: skip
OURS = ("live", "frozen")


def is_ours(name):
    return name.startswith(OURS)


def measure(task, chosen, seconds, log, step, deadline, neighbours=0):
    """Rows for one batch. A model that cannot run has a row that says why."""
    rows, there, expected = {}, {}, Gate(task) if task.mode == "infer" else None
    start = starter(task)
    with contextlib.ExitStack() as stack:
        for name in known(task.mode, task.device, task.dtype):
            if chosen and name not in chosen:
                continue
            rows[name] = row = {"mode": task.mode, "candidate": name, "kind": "ours" if is_ours(name) else "peer"}
            if why := peers.why_missing(name, task.dtype) or ("out of time" if deadline() else None):
                row["missing"] = why
                continue
            step(f"batch {task.batch}: {name}")
            contestant = stack.enter_context(contextlib.closing(start(name)))
            row |= _prepared(contestant, expected)
            if is_ours(name) and expected and not row.get("budget", 0) <= 1:
                row["wrong"] = f"{row['budget']:.2f} of the error budget: not timed"
            if "missing" in row or "wrong" in row:
                contestant.close()
            else:
                row |= peers.version(name)
                there[name] = contestant
        with harness.beside(neighbours):  # not while kernels are chosen and compiled
            _time(rows, there, task, seconds, step, alone=neighbours == 0)
    return _finish(rows, task, log)


def _prepared(contestant, expected):
    """The columns that are known before the clock starts."""
    try:
        columns, out = contestant.prepare()
    except apart.Gone as why:
        return {"missing": f"failed: {why}"}
    return columns if out is None or expected is None else columns | expected.columns(out)


def _time(rows, there, task, seconds, step, alone):
    if not there:
        return
    timings = timing.interleaved(
        there, seconds=seconds, clock=lambda contestant, calls: contestant.seconds(calls, alone),
        on_round=lambda i: step(f"batch {task.batch}: round {i + 1}"),
    )  # fmt: skip
    peer_times = [t for name, t in timings.items() if not is_ours(name)]
    best = min(peer_times, key=lambda t: t.median) if peer_times else None
    for name, t in timings.items():
        rows[name] |= record.timed(t, task.batch)
        rows[name]["vs_eager"] = t.speedup_over(timings["eager"]) if "eager" in timings else None
        rows[name]["vs_peer"] = t.speedup_over(best) if best else None
        rows[name] |= there[name].after()
    if task.mode == "infer" and task.batch <= LATENCY_UP_TO:
        step(f"batch {task.batch}: single calls")
        calls = LATENCY_CALLS[task.device] if seconds else 5
        parts = [{name: one.single_calls(calls // 5) for name, one in there.items()} for _ in range(5)]
        for name in there:
            ordered = sorted(sample for part in parts for sample in part[name])
            rows[name] |= {"call_p50": harness.percentile(ordered, 0.5), "call_p99": harness.percentile(ordered, 0.99)}


def _finish(rows, task, log):
    for row in rows.values():
        row |= {"batch": task.batch, "size": task.size, "dtype": str(task.dtype)[6:]}
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
            "first": number(r, "first_result", "{:.1f}"),
            "error": number(r, "error", "{:.1e}"), "budget": number(r, "budget", "{:.2f}"),
        }
        for r in there
    ])] if there else []  # fmt: skip
    if noisy := [r for r in there if r.get("disturbed")]:
        most = max(r["disturbed"] / r["rounds"] for r in noisy)
        lines.append(f"NOT QUIET: other processes ran in up to {100 * min(1, most):.0f} % of the samples of a model")
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


def known(mode, device, dtype=torch.float32):
    """Names of the models; none of them is made."""
    return list(MODES[mode](None, torch.empty(1, 3, 32, 32, device=device, dtype=dtype)))


def run(args, chosen):
    """Measures and records all batches; once the budget is spent, models that have had no turn are left out."""
    deadline = options.deadline(args)
    log = record.Log("resnet", args.device, args.output)
    log.head["model"] = args.model
    if args.neighbours:
        log.head["environment"]["device"] += f", beside {args.neighbours} busy process" + "es" * (args.neighbours > 1)
    rows = []
    seconds = 10.0 if args.seconds is None else args.seconds
    with Progress() as progress:
        for batch in args.batch:
            task = Task(args.model, args.mode, args.dtype, batch, args.size, args.device, torch.get_num_threads())
            rows += measure(task, chosen, seconds, log, progress.step, deadline, args.neighbours)
            torch._dynamo.reset()
            gc.collect()
    return rows


if __name__ == "__main__":
    sys.exit(options.run(main, None))
