"""The instruction sets of the compiled CPU kernels (csrc/cpu/base/isa.h), for tests that run again with a lower one."""

import os
import subprocess
import sys

import pytest

from resnet_fused.kernels import library
from resnet_fused.kernels.env import INSTRUCTION_SETS as SETS

LOWER = ("portable", "avx2")  # those that every kernel is compiled for, without the best of them
VARIABLE = "RESNET_FUSED_CPU_ISA"
# A run with a lower set does not start others.
outermost = pytest.mark.skipif(VARIABLE in os.environ, reason="this is the run with a lower instruction set")


def run_again(isa, *files, **variables):
    """Runs test files with no more than `isa`; skips where that is not below what this machine has."""
    if isa not in SETS[: SETS.index(library.cpu_isa())]:
        pytest.skip(f"{isa} is not below {library.cpu_isa()}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, files)],
        env={**os.environ, VARIABLE: isa, **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]
