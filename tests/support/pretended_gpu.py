"""Runs a file of tests in a process of its own where torch believes in two CUDA devices (emulator/pretended.py)."""

import os
import re
import subprocess
import sys

import pytest
import torch
from emulator import build

HERE = build.ROOT / "tests" / "gpu_path"


def run(name, *options):
    if (why := build.why_not()) is not None:
        pytest.skip(why)
    if torch.version.cuda:
        pytest.skip("this torch is built with CUDA, whose device the pretended one cannot replace")
    path = os.pathsep.join(map(str, (build.ROOT, build.ROOT / "tests", build.ROOT / "tests" / "support", HERE)))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "emulator.pretended", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"{HERE / name}.py", *options], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0 and re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
