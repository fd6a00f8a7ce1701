"""python -m benchmarks.gpu.fp8: the engine in e4m3 beside the one in bfloat16: errors against float64, then time.

On a CPU (TRITON_INTERPRET=1) nothing is timed: the engine runs by the formula in torch, which gives the errors.
"""

import contextlib
import sys

import torch

from resnet_fused import dispatch, freeze
from resnet_fused.commands.arguments import UsageError
from resnet_fused.commands.progress import Progress
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.measure import timing
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.reports import table

from ..protocol import options, record

COLUMNS = {"model": "model", "batch": "batch", "fp8": "error, fp8", "bfloat16": "error, eager bfloat16",
           "agree": "largest logit kept", "ms8": "ms, fp8", "ms16": "ms, bfloat16", "ratio": "ratio"}  # fmt: skip


def compare(model, x, device, seconds):
    """One row: the errors of the engine in e4m3 and of eager bfloat16; on a GPU also the times of both engines."""
    graph = device == "cuda"
    engine = freeze(model, x, dtype="fp8", graph=graph)
    e = engine.errors
    row = {"batch": len(x), "size": x.shape[-1], "dtype": "fp8", "error": e["fp8"], "error_bfloat16": e["bfloat16"],
           "images": e["images"], "agree": e["fp8 agrees"], "agree_bfloat16": e["bfloat16 agrees"]}  # fmt: skip
    if not graph:
        return row
    x, other = x.to(torch.bfloat16), freeze(model, x, dtype=torch.bfloat16)
    runs = {"fp8": timing.Candidate(lambda: engine(x)), "bfloat16": timing.Candidate(lambda: other(x))}
    times = timing.compare(runs, seconds=seconds, device=device)
    row |= record.timed(times["fp8"], len(x)) | {"median_bfloat16": times["bfloat16"].median}
    return row | {"ratio": times["fp8"].speedup_over(times["bfloat16"])}


def main(argv=None):
    args = options.settle(options.parser("gpu.fp8", __doc__.splitlines()[0]).parse_args(argv), (256, 32, 1), (2,))
    if (why := fp8.why_not(torch.device(args.device))) is not None:
        raise UsageError(f"argument --device: {why}")
    log, deadline, rows = record.Log("fp8", args.device, args.output), options.deadline(args), []
    torch.manual_seed(0)
    model = with_lively_norms(options.model_of(args)).eval().to(args.device)
    by_formula = dispatch.backend("eager") if args.device == "cpu" else contextlib.nullcontext()
    with Progress() as progress, by_formula:
        for batch in args.batch:
            if deadline():
                log.add({"cut": "out of time", "batch": batch})
                break
            progress.step(f"batch {batch}")
            x = torch.randn(batch, 3, args.size, args.size, device=args.device)
            rows.append(
                {"model": args.model} | compare(model, x, args.device, 2.0 if args.seconds is None else args.seconds)
            )
            log.add(rows[-1])
    print(text(rows))
    return 0


def text(rows):
    def ms(row, key):
        return f"{1e3 * row[key]:.3f}" if key in row else "-"

    return table.render(COLUMNS, [
        {
            "model": r["model"], "batch": r["batch"], "fp8": f"{r['error']:.2g}", "bfloat16": f"{r['error_bfloat16']:.2g}",
            "agree": f"{r['agree']} of {r['images']} (bfloat16: {r['agree_bfloat16']})", "ms8": ms(r, "median"),
            "ms16": ms(r, "median_bfloat16"), "ratio": f"{r['ratio']:.2f}x" if "ratio" in r else "-",
        }
        for r in rows
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(options.run(main, None))
