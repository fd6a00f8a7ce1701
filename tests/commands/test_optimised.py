"""python -OO, which has no docstrings and no asserts: every command does its work."""

import os
import subprocess
import sys

import pytest
from repository import ROOT

LINES = {
    "info": "info",
    "summary": "summary resnet20",
    "explain": "explain --model resnet18 --size 32",
    "explain, frozen": "explain --model resnet18 --size 32 --frozen",
    "explain, training": "explain --model resnet18 --size 32 --batch 2 --train",
    "bench": "bench --model resnet18 --batch 1 --size 32 --seconds 0",
    "demo": "demo --model resnet18 --batch 1 --seconds 0 --output chart.png",
    "verify": "verify --quick --dtype float32",
    "tune": "tune resnet18 1x3x32x32 --seconds 0.1",
    "train": "train --output run --limit 16 --batch 8 --epochs 1",
    "a mistake": "summary --size 4",
}
# One process for all, since the start of one takes longer than most commands.
CODE = """
import sys
from resnet_fused.commands.main import main
assert False, "asserts are not left out"
for line in sys.stdin.read().splitlines():
    print("status", main([*line.split(), "--device", "cpu"] if line != "info" else ["info"]), flush=True)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{name of a line: (status, what it printed)}"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-OO", "-c", CODE], input="\n".join(LINES.values()), cwd=tmp_path_factory.mktemp("runs"),
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    *printed, rest = done.stdout.split("status ")
    assert done.returncode == 0 and len(printed) == len(LINES), done.stderr[-2000:]
    found = {}
    for name, after in zip(LINES, [*printed[1:], rest], strict=True):
        found[name] = after.splitlines()[0], done.stderr
    return found


@pytest.mark.slow("runs every command again")
@pytest.mark.parametrize("name", LINES)
def test_a_command(results, name):
    status, err = results[name]
    assert status == ("2" if name == "a mistake" else "0"), err[-2000:]
