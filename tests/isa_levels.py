"""Instruction sets of the CPU kernels, and a test file once more with a lower one."""

import os
import subprocess
import sys

import pytest

from resnet_fused import native

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # in order: csrc/cpu/isa.h
LOWER = LEVELS[:-1]


def rerun(file, isa, *more):
    """Runs the tests of `file`, and of `more`, with RESNET_FUSED_CPU_ISA=isa; skips where this process has no higher one."""
    if "RESNET_FUSED_CPU_ISA" in os.environ:
        pytest.skip("this is the run with a lower instruction set")
    if LEVELS.index(isa) >= LEVELS.index(native.cpu_isa()):
        pytest.skip(f"{isa} is not below {native.cpu_isa()}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, *more],
        env={**os.environ, "RESNET_FUSED_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]
