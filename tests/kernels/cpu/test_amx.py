"""Convolutions on the matrix unit, against float64 beside torch's own error.

Where the unit is absent or RESNET_FUSED_CPU_ISA leaves it out, all of this runs on its emulation (csrc/cpu/base/amx_tiles.h).
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import amx_cases
import isa
import pytest
import torch
from amx_cases import CASES, DTYPE_IDS, DTYPES, between_sentinels, check_numbers, ops, problem, run
from repository import ROOT

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_against_float64(case, dtype):
    check_numbers(case, dtype, "amx")
    if dtype == torch.float32:
        # Sums of parts add no error of their own: below one of all terms in random order, at any depth.
        x, weight, shift, _, convolve = problem(case, dtype)
        exact, eager = convolve(x.double(), weight.double(), shift), convolve(x, weight, shift)
        error, of_torch = ((t.double() - exact).norm() for t in (run(case, x, ops.amx_pack(weight), shift), eager))
        assert error <= 1.2 * of_torch + 2e-7 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "name",
    ["kernel-3-stride-3", "two-chunks-of-channels", "rows-in-segments", "images-in-groups", "chunks-and-groups",
     "split-panels", "split-panels-images-stride-2", "map-1x1", "kernel-1-padding-3"],
)  # fmt: skip
def test_same_bits_for_every_thread_count_and_batch(threads, name, dtype):
    x, weight, shift, residual, _ = problem(CASES[name], dtype)
    packed, results = ops.amx_pack(weight), []
    for count in (1, 2, 3, 4, 4):
        threads(count)
        results.append(run(CASES[name], x, packed, shift, residual))
    assert all(torch.equal(result, results[0]) for result in results)
    last = between_sentinels((1, *x.shape[1:]), dtype).copy_(x[-1:])
    assert torch.equal(run(CASES[name], last, packed, shift, residual[-1:]), results[0][-1:])


def test_two_calls_at_once_beside_onednn(threads):
    """oneDNN keeps a configuration of the tiles in each thread, and so do these kernels: each must find its own."""
    threads(2)
    names = ["split-panels", "kernel-3-stride-2", "channels-17-filters-3"]
    jobs = []
    for name in names:
        x, weight, shift, _, convolve = problem(CASES[name], torch.bfloat16)
        packed = ops.amx_pack(weight)
        jobs.append(lambda x=x, p=packed, s=shift, case=CASES[name]: run(case, x, p, s))
        jobs.append(lambda x=x, w=weight, s=shift, f=convolve: f(x, w, s))
    expected, wrong = [job() for job in jobs], []

    def repeat(order):
        for _ in range(15):
            wrong.extend(i for i in order if not torch.equal(jobs[i](), expected[i]))

    workers = [threading.Thread(target=repeat, args=(order,)) for order in ([0, 1, 2, 3, 4, 5], [5, 4, 2, 3, 0, 1])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_batch_of_none():
    case = (1, 3, 5, 6, 6, 3, 3, 1, 1, 1)
    got = run(case, torch.empty(0, 3, 6, 6), ops.amx_pack(torch.randn(5, 3, 3, 3)), torch.zeros(5))
    assert got.shape == (0, 5, 6, 6)


CASE = (2, 8, 16, 6, 6, 3, 3, 1, 1, 1)
BAD = {
    "x must be float32 or bfloat16": lambda x, p, s, r, out, conv: conv(x.half(), p, s, r, out),
    "x must be [n, c, h, w]": lambda x, p, s, r, out, conv: conv(x[0], p, s, r, out),
    "x must be dense channels_last": lambda x, p, s, r, out, conv: conv(x.contiguous(), p, s, r, out),
    "out must have the dtype of x": lambda x, p, s, r, out, conv: conv(x, p, s, r, out.bfloat16()),
    "out must be dense channels_last": lambda x, p, s, r, out, conv: conv(x, p, s, r, out[:, :15]),
    "kernel, stride and dilation must be positive": lambda x, p, s, r, out, conv: conv(x, p, s, r, out, stride=0),
    "padding not negative": lambda x, p, s, r, out, conv: conv(x, p, s, r, out, padding=-1),
    "no output pixel or channel": lambda x, p, s, r, out, conv: conv(x, p, s, r, out, kernel_h=9),
    "no output pixel": lambda x, p, s, r, out, conv: conv(x, p, s, r, out, kernel_w=4, dilation=3),
    "out has the wrong shape": lambda x, p, s, r, out, conv: conv(x, p, s, r, out, padding=2),
    "packed must come from amx_pack": lambda x, p, s, r, out, conv: conv(x, p[1:], s, r, out),
    "of this shape and dtype": lambda x, p, s, r, out, conv: conv(x.bfloat16(), p, s, None, out.bfloat16()),
    "shift must be contiguous float32 of 16 values": lambda x, p, s, r, out, conv: conv(x, p, s[1:], r, out),
    "residual must have the dtype of x": lambda x, p, s, r, out, conv: conv(x, p, s, r.bfloat16(), out),
    "residual must have the shape of out": lambda x, p, s, r, out, conv: conv(x, p, s, x, out),
    "out must not be x": lambda x, p, s, r, out, conv: conv(out, ops.amx_pack(torch.randn(16, 16, 3, 3)), s, r, out),
    "weight must be float32 or bfloat16": lambda x, p, s, r, out, conv: ops.amx_pack(torch.randn(4, 4, 3, 3).half()),
    "weight must be contiguous": lambda x, p, s, r, out, conv: ops.amx_pack(torch.randn(4, 4, 3, 3)[:, :2]),
    "weight must be contiguous [k, c, kernel_h": lambda x, p, s, r, out, conv: ops.amx_pack(torch.randn(0, 4, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_messages(message):
    x, weight, shift, residual, _ = problem(CASE, torch.float32)
    out = residual.clone()

    def conv(x, packed, shift, residual, out, kernel_h=3, kernel_w=3, stride=1, padding=1, dilation=1):
        ops.amx_conv(x, packed, shift, residual, out, kernel_h, kernel_w, stride, padding, dilation, False)

    with pytest.raises(RuntimeError) as caught:
        BAD[message](x, ops.amx_pack(weight), shift, residual, out, conv)
    assert message in str(caught.value)
    assert torch.equal(out, residual)


# Runs some of these tests, then writes outputs that must be the unit's, bit for bit.
EMULATED = """
import sys, pytest, torch
chosen = "against_float64 and (" + " or ".join(sys.argv[2].split()) + ") or messages or batch_of_none or exactly or subnormal"
status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *sys.argv[3:]])
import amx_cases, amx_stem_cases
torch.save({**amx_cases.outputs(), **amx_stem_cases.outputs()}, sys.argv[1])
sys.exit(status)
"""


@isa.outermost
def test_emulation_and_unit_give_the_same_bits(tmp_path):
    """So what is proven where there is no unit is proven, and the sums are in the order that Intel's manual gives."""
    if library.cpu_isa() != "amx":
        pytest.skip("this machine has no matrix unit: all tests above ran on the emulation")
    import amx_stem_cases

    here, file = Path(__file__).parent, tmp_path / "outputs.pt"
    tests = [here / name for name in ("test_amx.py", "test_amx_special_values.py", "test_amx_stem.py")]
    done = subprocess.run(
        [sys.executable, "-c", EMULATED, file, " ".join([*amx_cases.FEW, *amx_stem_cases.FEW]), *tests],
        env={
            **os.environ,
            isa.VARIABLE: "avx512",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support"))),
        },
        cwd=here,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    unit, emulation = {**amx_cases.outputs(), **amx_stem_cases.outputs()}, torch.load(file)
    assert unit.keys() == emulation.keys() and all(t.isfinite().all() for t in unit.values())
    assert [name for name in unit if not torch.equal(unit[name], emulation[name])] == []
