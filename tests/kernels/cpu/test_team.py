"""The team of threads of the CPU kernels (csrc/cpu/base/team.h), alone and below a frozen network.

Everything has a time limit: a mistake here hangs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator import build
from repository import ROOT

from resnet_fused.kernels import library

CHECKS = ["together", "absent", "late", "failure", "sleepers"]
COMPILER = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


@pytest.fixture(scope="module", params=["plain", "thread-sanitizer"])
def checks(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("team") / "checks"
    options = ["-O2"] if request.param == "plain" else ["-O1", "-g1", "-fsanitize=thread"]
    sources = [Path(__file__).with_name("team_checks.cpp"), build.CSRC / "cpu/base/team.cpp"]
    command = ["g++", "-std=c++20", "-pthread", *options, f"-I{build.CSRC}", *map(str, sources), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 and "tsan" in done.stderr:
        pytest.skip("this g++ has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    return out


@COMPILER
@pytest.mark.parametrize("check", CHECKS)
def test_the_team(checks, check):
    done = subprocess.run([checks, check], capture_output=True, text=True, timeout=60)
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr


AT_ONCE = """
import concurrent.futures, pytest, torch, resnet_fused
from one_call_cases import measured
from resnet_fused.frozen.cpu import one_call
measured(pytest.MonkeyPatch(), one_call.KINDS, whole=1.0, layers=2.0)  # no time decides
torch.manual_seed(0)
torch.set_num_threads(3)
x = torch.randn(2, 3, 48, 48)
def made(width):
    model = resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=width).eval()
    return resnet_fused.freeze(model, x)
engines = [made(5), made(7)]
assert all(engine._calls.one_call is not None for engine in engines)
expected = [engine(x) for engine in engines]
def work(i):
    torch.set_num_threads(1 + i % 4)
    return all(torch.equal(engines[(i + j) % 2](x), expected[(i + j) % 2]) for j in range(20))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(work, range(8)))
print("done")
"""


@pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
def test_eight_callers_of_two_engines_at_once():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", AT_ONCE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
