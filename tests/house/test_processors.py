"""The numbers on other processors: the same tests in children that may use less of this one.

RESNET_FUSED_CPU_ISA lowers the kernels of this package, ONEDNN_MAX_CPU_ISA those of torch, which are the yardstick of most
tests and half of what a live network runs.
"""

import os
import subprocess
import sys

import pytest
from repository import ROOT

from resnet_fused.kernels import library, torch_convolution
from resnet_fused.kernels.env import INSTRUCTION_SETS

pytestmark = [
    pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent())),
    pytest.mark.exhaustive("the numeric tests once more for each processor"),
]
NUMERIC = ("kernels/cpu", "ops", "modules", "frozen", "models/test_born.py", "models/test_fuzz.py")
OTHER_KERNELS = "not emulator and not triton"  # they are not the CPU's
PROCESSORS = [
    *(pytest.param("RESNET_FUSED_CPU_ISA", isa, id=isa) for isa in INSTRUCTION_SETS[:-1]),
    *(
        pytest.param("ONEDNN_MAX_CPU_ISA", isa, id=f"oneDNN-{isa}")
        for isa in ("AVX2", "AVX512_CORE", "AVX512_CORE_BF16")
    ),
]


def same_as_here(variable, isa):
    """Whether the setting changes nothing on this machine."""
    if variable == "RESNET_FUSED_CPU_ISA":
        return isa not in INSTRUCTION_SETS[: INSTRUCTION_SETS.index(library.cpu_isa())]
    return isa == "AVX512_CORE_BF16" and not torch_convolution.has_matrix_unit()


@pytest.mark.parametrize(("variable", "isa"), PROCESSORS)
def test_numbers(variable, isa):
    if same_as_here(variable, isa):
        pytest.skip(f"{isa} is what this machine has, or more")
    files = [str(ROOT / "tests" / name) for name in NUMERIC]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", OTHER_KERNELS, *files],
        env={**os.environ, variable: isa},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
