"""The tests of the CPU kernels once more, with no more than a lower instruction set: one process for each."""

from pathlib import Path

import isa
import pytest

from resnet_fused.kernels import library

pytestmark = [
    isa.outermost,
    pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent())),
]
HERE = Path(__file__).parent
OF_BFLOAT16 = ("test_direct.py", "test_winograd_bf16.py")  # whose kernels have an instruction set more
OTHERS = (
    "test_native.py",
    "test_native_special_values.py",
    "test_stem.py",
    "test_winograd.py",
    "test_winograd_training.py",
)


@pytest.mark.parametrize("lower", isa.SETS[:-1])
def test_lower_instruction_sets(lower):
    files = OF_BFLOAT16 + (OTHERS if lower in isa.LOWER else ())
    isa.run_again(lower, *(HERE / name for name in files), OMP_NUM_THREADS="1")
