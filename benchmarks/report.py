"""python -m benchmarks.report: tables, plots and comparisons from the results; measures nothing.

Each case shows its newest row. `--against COMMIT` lists what became slower since: more than 3 % beyond the spread.
"""

import sys
from pathlib import Path

from resnet_fused.commands.arguments import Parser, UsageError

from . import plots
from .protocol import options, record
from .rows import KEY, SLOWER, grouped, newest, of_commit, slower


def table(head, lines):
    """A Markdown table; the first column is text, the others numbers."""
    made = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join(made + ["| " + " | ".join(map(str, line)) + " |" for line in lines])


def _stamp(rows):
    environment = rows[-1]["environment"]
    state = "unknown commit, files " + environment["tree"]
    if environment["commit"]:
        state = environment["commit"] + " with changes" * bool(environment["dirty"])
    return f"torch {environment['torch']}, {rows[-1]['run'][:10]}, {state}"


def models(rows):
    """Markdown: a table per device, mode, model and size; ms per batch, interleaved medians, and below them the errors
    against float64, relative to the largest value."""
    parts = []
    rows = [row for row in rows if row["suite"] == "resnet"]
    for (device, mode, model, size), group in grouped(rows, "device", "mode", "model", "size").items():
        timed = [row for row in group if "median" in row]
        names = list(dict.fromkeys(row["candidate"] for row in timed))
        what = "training step" if mode == "train" else "inference"
        lines = []
        for (batch, dtype), line in grouped(timed, "batch", "dtype").items():
            of = {row["candidate"]: row for row in line}
            lines.append([f"{batch} {dtype}", *(_ms(of.get(name)) for name in names)])
            if any("error" in row for row in line):
                lines.append([f"{batch} {dtype}, error", *(_error(of.get(name)) for name in names)])
        title = f"**{model} {what} at {size}x{size}, ms per batch** ({device}; {_stamp(group)})"
        parts += [title, table(["batch", *names], lines)] if lines else []
        parts += [f"Missing: {row['candidate']}: {row['missing']}" for row in group if "missing" in row]
        parts += [f"WRONG: {row['candidate']}: {row['wrong']}" for row in group if "wrong" in row]
    return "\n\n".join(parts)


def _ms(row):
    return "-" if row is None else f"{1e3 * row['median']:.3g}"


def _error(row):
    return "-" if row is None or "error" not in row else f"{row['error']:.0e}"


def kernels(rows):
    """Markdown: a table per device, op and direction: our fastest, the best peer and eager."""
    parts = []
    rows = [row for row in rows if row["suite"] == "kernels"]
    for (device, op, direction, dtype), group in grouped(rows, "device", "op", "direction", "dtype").items():
        lines = []
        for (case,), line in grouped(group, "case").items():
            timed = sorted((row for row in line if "median" in row), key=lambda row: row["median"])
            ours = next((row for row in timed if row["kind"] == "ours"), None)
            peer = next((row for row in timed if row["kind"] == "peer"), None)
            eager = next((row for row in timed if row["candidate"] == "eager"), None)
            if ours is None or peer is None:
                continue
            lines.append([
                case, ours["candidate"], *(f"{1e6 * row['median']:.1f}" if row else "-" for row in (ours, peer, eager)),
                peer["candidate"], f"{peer['median'] / ours['median']:.2f}x", f"{100 * ours['ceiling']:.0f} %",
            ])  # fmt: skip
        head = ["case", "our fastest", "us", "best peer us", "eager us", "best peer", "speed-up", "of ceiling"]
        parts += [f"**{op}, {direction}, {dtype}** ({device}; {_stamp(group)})", table(head, lines)] if lines else []
        parts += [f"WRONG: {row['candidate']} in {row['case']}: {row['wrong']}" for row in group if "wrong" in row]
    return "\n\n".join(parts)


def steering(rows):
    """Markdown: torch's own convolutions, what decides which kernels are worth writing."""
    parts = []
    rows = [row for row in rows if row["suite"] == "steering"]
    for (device, dtype), group in grouped(rows, "device", "dtype").items():
        lines = [
            [r["case"], r["direction"], f"{1e6 * r['median']:.1f}", f"{r['tflops']:.3g}", f"{100 * r['share']:.0f} %",
             (r["kernels"] or ["-"])[0]]
            for r in group
        ]  # fmt: skip
        parts += [f"**torch's convolutions, {dtype}** ({device}; {_stamp(group)})",
                  table(["case", "pass", "us", "TFLOP/s", "of matmul", "kernel"], lines)]  # fmt: skip
    return "\n\n".join(parts)


def regressions(rows, commit):
    """Markdown: what is slower than at `commit`."""
    found = slower(newest(of_commit(rows, commit)), newest(rows))
    if not found:
        return f"Nothing is more than {SLOWER:.0%} slower than at {commit}, beyond the spread."
    lines = [
        [" ".join(str(after[k]) for k in KEY[1:] if after.get(k) is not None), f"{1e3 * before['median']:.4g}",
         f"{1e3 * after['median']:.4g}", f"{after['median'] / before['median'] - 1:+.1%}"]
        for before, after in found
    ]  # fmt: skip
    return "Slower than at " + commit + ":\n\n" + table(["case", "ms then", "ms now", "change"], lines)


PLOTS = record.RESULTS / "plots"  # ignored by git
SUITES = {"models": models, "kernels": kernels, "steering": steering}


def main(argv=None):
    made = Parser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    made.add_argument("--results", default=str(record.RESULTS), help="folder of the .jsonl files")
    made.add_argument("--against", metavar="COMMIT", help="compare with the results of this commit")
    made.add_argument(
        "--plots", metavar="FOLDER", nargs="?", const=str(PLOTS),
        help="also draw speed-ups and rooflines as PNG and SVG; default: benchmarks/results/plots",
    )  # fmt: skip
    made.add_argument("--suite", choices=SUITES, nargs="+", default=["models", "kernels"])
    args = made.parse_args(argv)
    if not Path(args.results).is_dir():
        raise UsageError(f"--results: no such folder: {args.results}")
    rows = record.read(args.results)
    if not rows:
        raise UsageError(f"--results: no results in {args.results}")
    parts = [SUITES[name](list(newest(rows).values())) for name in args.suite]
    if args.against:
        parts.append(regressions(rows, args.against))
    if args.plots:
        parts.append("Plots: " + ", ".join(map(str, plots.draw(rows, args.plots))))
    print("\n\n".join(part for part in parts if part))
    return 0


if __name__ == "__main__":
    sys.exit(options.run(main, None))
