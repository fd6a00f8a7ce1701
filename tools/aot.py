"""Compiles all CUDA and Triton kernels for GPUs that are not there: registers, spills, shared memory, tensor cores.

    python tools/aot.py [--arch 80 90 100] [--only NAME] [--quiet]

Each half can be run alone: tools/aot_cuda.py, tools/aot_triton.py. A half that cannot run here says why and makes the
exit status 1, as any fault does.
"""

import argparse
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled

import aot_cuda

COLUMNS = ["kernel", "case", "arch", "dtype", "registers", "spills", "stack", "shared", "tensor_core"]


def halves():
    """(name, rows(archs, only), faults(row)) of each, or why it cannot run."""
    yield "cuda", aot_cuda
    try:
        import aot_triton
    except ImportError as error:
        yield "triton", str(error)
    else:
        yield "triton", aot_triton


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--only", default="", help="what contains this in its name")
    parser.add_argument("--quiet", action="store_true", help="only kernels with faults")
    options = parser.parse_args()
    table, problems = [], []
    for name, half in halves():
        try:
            if isinstance(half, str):
                raise aot_cuda.CannotCompile(half)
            found = half.rows(options.arch, options.only)
        except aot_cuda.CannotCompile as why:
            problems.append(f"{name}: {why}")
            continue
        table += [(row, list(half.faults(row))) for row in found]
        print(f"{name}: {len(found)} kernels compiled")
    shown = [(row, wrong) for row, wrong in table if wrong or not options.quiet]
    if shown:
        widths = {c: max(len(c), *(len(str(row.get(c, ""))) for row, _ in shown)) for c in COLUMNS}
        print("  ".join(c.ljust(width) for c, width in widths.items()))
        for row, wrong in shown:
            print("  ".join(str(row.get(c, "")).ljust(width) for c, width in widths.items()), *wrong)
    failed = sum(bool(wrong) for _, wrong in table)
    print(f"{len(table)} kernels, {failed} with faults (ahead of time, no GPU)")
    print(*problems, sep="\n")
    return 1 if failed or problems or not table else 0


if __name__ == "__main__":
    sys.exit(main())
