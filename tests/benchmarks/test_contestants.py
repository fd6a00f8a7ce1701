"""Whole models: the same network for all, results compared before anything is timed, a row for whoever cannot run."""

from pathlib import Path

import pytest
import torch

from benchmarks import resnet
from benchmarks.peers import peers
from benchmarks.peers.contestant import Contestant, Gate, Task
from benchmarks.protocol import harness, record

TASK = Task("resnet20", "infer", torch.bfloat16, 2, 32, "cpu", 1)


def test_every_process_makes_the_same_network_and_images():
    (one, x), (two, y) = TASK.made(), TASK.made()
    assert torch.equal(x, y) and x.dtype == torch.bfloat16
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("off", [1.0, 1.05], ids=["right", "off"])
def test_results_are_compared_in_eagers_dtype(off):
    columns, out = Contestant("eager", "infer", *TASK.made()).prepare()
    assert columns["first_result"] > 0
    found = Gate(TASK).columns([t * off for t in out])
    assert 0 < found["error"] < 0.1 and (found["budget"] <= 1) == (off == 1.0)
    assert "the shape (2, 9), eager's (2, 10)" in Gate(TASK).columns([t[:, :9] for t in out])["missing"]


class Fake:
    """A contestant whose logits are off by `off`, and which takes a second."""

    asked = ()

    def __init__(self, name, off):
        self.name, self.off = name, off

    def prepare(self):
        _, (logits,) = Contestant("eager", "infer", *TASK.made()).prepare()
        return {"first_result": 1.0}, [logits * self.off]

    def seconds(self, calls, alone):
        Fake.asked += (self.name,)
        return 1.0

    def after(self):
        return {"peak_bytes": 0, "disturbed": 3}

    def close(self):
        pass


def test_what_is_wrong_is_timed_only_of_peers(monkeypatch, tmp_path):
    """A wrong model of ours has no time; a wrong peer has one beside its error; a missing peer costs no process."""
    monkeypatch.setattr(resnet, "starter", lambda task: lambda name: Fake(name, 1.1 if name != "live" else 1.0))
    monkeypatch.setattr(peers, "why_missing", lambda name, dtype: "not here" if name == "openvino" else None)
    names = ("eager", "live", "frozen", "openvino")
    rows = resnet.measure(TASK, names, 0.0, record.Log("resnet", "cpu", tmp_path), print, lambda: False)
    found = {row["candidate"]: row for row in rows}
    assert tuple(found) == names and set(Fake.asked) == {"eager", "live"}
    assert found["frozen"]["wrong"].endswith("of the error budget: not timed") and "median" not in found["frozen"]
    assert found["eager"]["median"] == 1.0 and found["eager"]["error"] > 0.09 and found["eager"]["budget"] > 1
    assert "NOT QUIET: other processes ran in up to 60 % of the samples" in resnet.text(rows)
    assert found["openvino"]["missing"] == "not here" and record.read(tmp_path) == [
        row | {k: v for k, v in record.read(tmp_path)[0].items() if k in ("suite", "run", "environment")}
        for row in rows
    ]


def test_a_runtime_that_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    why = peers.why_missing("ncnn", torch.float32)
    assert why == "the package ncnn is not installed (pip install 'resnet_fused[bench]')"
    assert peers.why_missing("live", torch.float32) is None


@pytest.mark.parametrize("busy", [0.05, 0.5], ids=["quiet", "busy"])
def test_a_disturbed_sample_is_taken_again(monkeypatch, busy):
    """In a second of measuring others have `busy` seconds of CPU, in the first two samples."""
    now, taken = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(harness, "others_seconds", lambda: busy * min(now[0], 2.0))

    def measure():
        now[0] += 1.0
        return taken.append(now[0]) or now[0]

    assert harness.undisturbed(measure) == ((1.0, False) if busy == 0.05 else (3.0, False))
    monkeypatch.setattr(harness, "others_seconds", lambda: busy * now[0])
    assert harness.undisturbed(measure)[1] == (busy == 0.5)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")
def test_what_others_use_is_seen():
    """A process of its own that is busy, not this one's own threads."""
    with harness.beside(1):
        before, start = harness.others_seconds(), harness.time.process_time()
        while harness.others_seconds() - before < 0.1:
            assert harness.time.process_time() - start < 60
