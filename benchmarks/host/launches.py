"""python -m benchmarks.host.launches: what a forward pass and a training step launch, ours and eager's.

Writes benchmarks/results/launches.json and docs/results/launches.md. tests/gpu_path/check_launches.py fails where a number of
ours has risen above that file.
"""

from .networks import MODES, Case, recorded  # noqa: I001 (before torch)

import json
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
FILE, PAGE = ROOT / "benchmarks/results/launches.json", ROOT / "docs/results/launches.md"
CASES = (
    Case("resnet34", 1, 224, "bfloat16", True),
    Case("resnet34", 256, 224, "bfloat16", True),
    Case("resnet34", 256, 224, "bfloat16", False),
    Case("resnet34", 256, 224, "autocast", True),
    Case("resnet34", 256, 224, "autocast", False),
    Case("resnet34", 256, 224, "float32", True),
    Case("resnet34", 2, 32, "bfloat16", False),
    Case("resnet50", 256, 224, "bfloat16", True),
    Case("resnet20", 256, 32, "bfloat16", True),
)
NUMBERS = ("launches", "copies", "fills", "bytes")
TEXT = """# Launches

What the host launches for one forward pass in evaluation and for one training step without its optimiser: **counted**, on
a CUDA device that is not there, by `python -m benchmarks.host.launches`. Every launcher of the compiled library and every
operator of torch counts once, however many kernels it has. Copies and fills are among the launches: changes of layout or
dtype, and zeros. Bytes are those of all tensors that a launch reads or writes. Float32 may use TF32. A test fails where a
number of ours rises.

| network, images, weights | | launches, eager | ours | copies, eager | ours | fills, eager | ours | GB, eager | ours |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|
{rows}

Eager's contiguous rows keep contiguous maps; there the kernels of cuDNN change layouts inside, which is not counted.
"""


def counted(case):
    """{mode: {"ours" or "eager": {number: value}}}"""
    model, eager, x = case.made()
    found = {}
    for mode in MODES:
        found[mode] = {}
        for name, network in (("ours", model), ("eager", eager)):
            call = case.call(network, x, mode)
            call()  # the first call may look something up
            with recorded() as record:
                call()
            found[mode][name] = record.summary()
    return found


def main():
    torch.backends.cudnn.allow_tf32 = True
    results = {str(case): counted(case) for case in CASES}
    FILE.write_text(json.dumps(results, indent=1) + "\n")
    rows = []
    for case, modes in results.items():
        for mode, both in modes.items():
            numbers = []
            for number in NUMBERS:
                digits = "{:.2f}" if number == "bytes" else "{}"
                scale = 1e9 if number == "bytes" else 1
                numbers += [
                    digits.format(both[name][number] / scale if scale > 1 else both[name][number])
                    for name in ("eager", "ours")
                ]
            rows.append(f"| {case} | {mode} | {' | '.join(numbers)} |")
    PAGE.write_text(TEXT.format(rows="\n".join(rows)))


if __name__ == "__main__":
    main()
