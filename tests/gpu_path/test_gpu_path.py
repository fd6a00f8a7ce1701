"""The CUDA path without a GPU, in processes of their own where torch believes in two CUDA devices (emulator/pretended.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import build

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("check_*.py")))
def test_on_a_pretended_gpu(name):
    if (why := build.why_not()) is not None:
        pytest.skip(why)
    path = os.pathsep.join(map(str, (build.ROOT, build.ROOT / "tests", build.ROOT / "tests" / "support", HERE)))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "emulator.pretended", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{HERE / name}.py"], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0 and re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
