"""Four processes on this machine: the checks in which the number of processes matters; and the trainer under torchrun."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import results

from resnet_fused.commands.train import checkpoint

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.exhaustive("four processes that import torch, on few cores")
CHECKS = ["sync_bn_of_uneven_batches", "sync_bn_with_an_empty_batch", "ddp", "fsdp2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results(tmp_path_factory.mktemp("four"), 4, CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_four_processes(found, check):
    assert found[check] is None, found[check]


def torchrun(folder, *options, processes=2, program=("-m", "resnet_fused")):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *program,
        "train", "--output", str(folder), "--limit", "64", "--batch", "16", "--epochs", "2", "--device", "cpu",
        *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_trainer_under_torchrun_also_after_a_kill(tmp_path):
    pytest.importorskip("sklearn")
    done = torchrun(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "whole/metrics.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]  # 64 images, 2 processes with 16 each
    killed = torchrun(
        tmp_path / "run", "--save-every", "1", program=[str(ROOT / "tests" / "support" / "killed_run.py")]
    )
    assert killed.returncode != 0 and (tmp_path / "run/checkpoint.pt.unfinished").exists()
    done = torchrun(tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    again, whole = (checkpoint.load(tmp_path / f / "checkpoint.pt") for f in ("run", "whole"))
    assert all(torch.equal(again["model"][k], whole["model"][k]) for k in whole["model"])
    assert [r["train_loss"] for r in again["rows"]] == [r["train_loss"] for r in whole["rows"]]


def test_mistakes_are_one_line_under_torchrun(tmp_path):
    refused = torchrun(tmp_path / "run", "--sync-bn")
    assert refused.returncode != 0 and "resnet_fused: error: --sync-bn: DDP takes" in refused.stderr
