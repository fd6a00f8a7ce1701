"""`python -m resnet_fused check`: the table, the exit status, and what is kept."""

import pytest
import torch

from resnet_fused import dispatch
from resnet_fused.commands.main import main
from resnet_fused.measure.trust import families, run, verdicts

NATIVE = dispatch.BACKENDS["native"]
pytestmark = pytest.mark.skipif(NATIVE.why_not(torch.device("cpu")) is not None, reason="there is no compiled library")


@pytest.fixture
def refused(own_cache, monkeypatch):
    """{name of a family: why it is refused} by a check that runs nothing."""
    found = {}

    def check(device, families, seconds):
        return [(family, run.Verdict(found.get(family.name), 2)) for family in families]

    monkeypatch.setattr(run, "verdicts", check)
    yield found
    verdicts.forget()


def test_the_cpu_kernels_are_checked_and_right(own_cache, capsys, monkeypatch):
    """In earnest, by a process of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["check", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    ran = [line.split()[:2] for line in out.splitlines() if line.startswith("native ") and line.endswith(" ok")]
    assert ran == [["native", family.name] for family in families.families(NATIVE, torch.device("cpu"))]


def test_a_refused_family_ends_with_status_1_and_is_kept(refused, capsys):
    refused["bn_relu"] = "wrong numbers: 3.20 of the error budget (2x64x7x7 nhwc, float16)"
    assert main(["check", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "REFUSED: wrong numbers: 3.20" in line] == ["bn_relu"]
    kept = verdicts.Record(torch.device("cpu")).read()
    assert kept["native bn_relu"] == refused["bn_relu"] and kept["native add_relu"] is None
    del refused["bn_relu"]
    assert main(["check", "--device", "cpu"]) == 0, "what was kept does not matter"
    assert set(verdicts.Record(torch.device("cpu")).read().values()) == {None}


@pytest.mark.usefixtures("refused")
def test_a_folder_that_cannot_be_written_is_said(own_cache, capsys):
    own_cache.write_text("a file")
    assert main(["check", "--device", "cpu"]) == 0
    assert f"this cannot be kept in {own_cache}" in capsys.readouterr().out
