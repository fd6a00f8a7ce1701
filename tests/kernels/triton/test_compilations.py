"""Kernels are compiled once, and not again for another batch: a compilation takes a GPU's user half a second."""

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT

pytest.importorskip("triton")
ARCHS = ("80", "89", "90")


@pytest.fixture(scope="module")
def compiled():
    command = [sys.executable, ROOT / "tests/support/compilations.py", *ARCHS]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # interpreted kernels have no binder
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("run", "kernels"),
    [("forward", 6), ("step", 23), ("forward of another batch", 0), ("step of another batch", 0),
     ("step of an odd last batch", 0)],
)  # fmt: skip
def test_kernels_that_a_resnet34_compiles(compiled, arch, run, kernels):
    assert len(compiled[arch][run]) == kernels, compiled[arch][run]
