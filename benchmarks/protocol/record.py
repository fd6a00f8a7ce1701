"""Results: one JSON object a line, appended, each with the machine, the versions and the commit that it was measured on."""

import datetime
import functools
import hashlib
import json
import subprocess
from pathlib import Path

import torch

from resnet_fused.reports import info

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CLOCKS = "clocks.sm,clocks.mem,power.limit,temperature.gpu,driver_version"


def environment(device):
    """{fact: value} that belongs beside a number."""
    facts = info.environment()
    return {
        "device": facts["gpu"] if device == "cuda" else facts["cpu"],
        "torch": facts["torch"], "triton": facts["triton"], "python": facts["python"].split()[0],
        "library": facts.get("built with", facts["compiled library"]),
        **(_gpu() if device == "cuda" else {"threads": torch.get_num_threads()}),
        **source(),
    }  # fmt: skip


@functools.cache
def source():
    """Which code ran: a hash of the files; and where git knows, the commit and whether any file differs from it."""
    digest = hashlib.sha256()
    for folder, pattern in (("resnet_fused", "*.py"), ("csrc", "*"), ("benchmarks", "*.py")):
        for path in sorted(p for p in (ROOT / folder).rglob(pattern) if p.is_file()):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    facts = {"tree": digest.hexdigest()[:12], "commit": None, "dirty": None}
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if commit:
        # The results themselves are no part of the code.
        changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!benchmarks/results")
        facts |= {"commit": commit, "dirty": bool(changed)}
    return facts


def _gpu():
    values = _output("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader", "-i", "0")
    names = CLOCKS.split(",")
    found = [v.strip() for v in values.split(",")] if values else ["unknown"] * len(names)
    return dict(zip(names, found, strict=True)) | {"cudnn": torch.backends.cudnn.version()}


def _output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Log:
    """Appends rows of one suite to `<folder>/<suite>-<device>.jsonl` at once, so that a cut loses none of them."""

    def __init__(self, suite, device, folder=None):
        self.path = Path(folder or RESULTS) / f"{suite}-{device}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        run = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.head = {"suite": suite, "run": run, "environment": environment(device)}

    def add(self, row):
        with open(self.path, "a") as f:  # one write of one line: writers at the same time do not mix
            f.write(json.dumps(self.head | row, default=str) + "\n")


def read(folder=None):
    """All rows under `folder`, oldest run first. A line that a cut left incomplete is skipped."""
    rows = []
    for path in sorted(Path(folder or RESULTS).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return sorted(rows, key=lambda row: row["run"])


def timed(timing, calls_per_second_of=None):
    """The columns of a Timing in seconds; `calls_per_second_of`: images (or the like) that one call works on."""
    columns = {"median": timing.median, "p20": timing.p20, "p80": timing.p80, "rounds": len(timing.samples)}
    if calls_per_second_of:
        columns["images_per_second"] = calls_per_second_of / timing.median
    return columns
