"""Contestants in processes of their own: stopped while others have their turn, and never left behind."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from repository import ROOT

from benchmarks.protocol import apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def spin():
    while True:
        pass


class Runtime:
    """One with a thread that never sleeps."""

    def __init__(self, name):
        self.name = name
        threading.Thread(target=spin, daemon=True).start()

    def who(self):
        return self.name, os.getpid()

    def wait(self, seconds):
        time.sleep(seconds)

    def fails(self):
        raise ValueError("not today")

    def ends(self):
        os._exit(3)

    def kill_parent(self):
        os.kill(os.getppid(), 9)


def state_and_ticks(pid):
    """("T" for stopped, CPU time of all threads); ("X", 0) where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[11]) + int(fields[12])


@pytest.fixture
def runtime():
    made = apart.Apart(Runtime, "a")
    yield made
    made.close()


def test_a_process_that_is_not_asked_has_no_core(runtime):
    name, pid = runtime.who()
    assert name == "a" and pid != os.getpid()
    state, before = state_and_ticks(pid)
    time.sleep(0.3)
    assert (state, before) == state_and_ticks(pid) == ("T", before), "its thread spins only while it is asked"
    runtime.wait(0.3)
    assert state_and_ticks(pid)[1] > before


def test_errors_are_told_and_end_nothing(runtime):
    with pytest.raises(RuntimeError, match=r"^ValueError: not today$"):
        runtime.fails()
    assert runtime.who()[0] == "a"
    with pytest.raises(apart.Gone, match="ended with status 3"):
        runtime.ends()


def test_closed_means_ended():
    runtime = apart.Apart(Runtime, "a")
    pid = runtime.who()[1]
    runtime.close()
    assert state_and_ticks(pid)[0] == "X"


def test_a_killed_parent_leaves_no_stopped_process():
    code = "import test_apart as t; one, two = (t.apart.Apart(t.Runtime, i) for i in 'ab')\n"
    code = f"if __name__ == '__main__':\n {code} print(one.who()[1], flush=True); two.kill_parent()"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/benchmarks", ROOT / "tests/support")))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    until = time.monotonic() + 10
    while (state := state_and_ticks(done.stdout.strip())[0]) not in "XZ" and time.monotonic() < until:
        time.sleep(0.02)
    assert state in "XZ"
