"""`make gpu`: its miniature runs here, and a part that hangs, fails or cannot run costs nothing but itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import parts
from benchmarks.protocol import options, record

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import aot_cuda  # noqa: E402


def python(code):
    return (sys.executable, "-c", code)


def run(tmp_path, *chosen, total=60.0):
    lines = []
    records = gpu.run(chosen, str(tmp_path), total, lines.append)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["parts"] == records and len(lines) == sum(r["state"] != "skipped" for r in records)
    return {r["part"]: r for r in records}


# {name: (beginnings of the names of parts, suites and directions of their rows, titles of the report)}
MINIATURES = {
    "checks": (("info", "check", "tests", "sanitized", "steering", "tune"), {"steering"}, {"fprop", "dgrad", "wgrad"}, ("of matmul",)),
    "models": (
        ("inference", "kernels", "training"), {"kernels", "resnet"}, {"forward", "backward"},
        ("inference at 32x32", "training step", "conv_bn_relu, backward"),
    ),
}  # fmt: skip


@pytest.mark.slow("every part of `make gpu`, which is a command for developers")
@pytest.mark.parametrize("name", MINIATURES)
def test_the_miniature(tmp_path, name):
    chosen, suites, directions, titles = MINIATURES[name]
    names = {p.name for p in parts.of("cpu", tmp_path, smoke=True) if p.name.startswith(chosen)}
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--smoke", "--output", str(tmp_path)]
    # One thread each: the parts of a miniature run at the same time, and threads that spin for each other take minutes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--parts", *chosen], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550
    )
    log = (tmp_path / "gpu.log").read_text() if (tmp_path / "gpu.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    states = {r["part"]: r["state"] for r in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert states == dict.fromkeys(names, "passed")
    rows = record.read(tmp_path)
    assert {row["suite"] for row in rows} == suites and {row.get("direction") for row in rows} >= directions
    assert len(list((tmp_path / "tuning").glob("tuning-*.json"))) == 1
    report = (tmp_path / "report.md").read_text()
    assert all(title in report for title in titles)


def test_the_miniatures_have_every_part(tmp_path):
    names = {part.name for part in parts.of("cpu", tmp_path, smoke=True)}
    assert {name for name in names if name.startswith(sum((m[0] for m in MINIATURES.values()), ()))} == names
    assert {"info", "check", "sanitized-calls", "steering", "inference-2", "kernels", "training", "tune"} <= names


def test_a_part_that_hangs_is_cut_with_its_children_and_the_rest_runs(tmp_path):
    mark = tmp_path / "child-lives"
    child = f"import pathlib, time; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    hang = (
        f"import subprocess, sys, time; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    start = time.monotonic()
    found = run(
        tmp_path,
        parts.Part("hangs", 0, 1.5, python(hang)),
        parts.Part("fails", 0, 30, python("print('why'); raise SystemExit(3)")),
        parts.Part("after", 1, 30, python("print('here')")),
    )
    assert time.monotonic() - start < 20
    assert found["hangs"]["state"] == "cut" and found["hangs"]["last"] == ["begun"]
    assert (found["fails"]["state"], found["fails"]["status"], found["fails"]["last"]) == ("FAILED", 3, ["why"])
    assert found["after"]["state"] == "passed" and "here" in (tmp_path / "gpu.log").read_text()
    time.sleep(max(0.0, 5 - (time.monotonic() - start)))
    assert not mark.exists(), "the child of a part that was cut still ran"


def test_out_of_time_and_missing_tools_are_said(tmp_path):
    found = run(
        tmp_path,
        parts.Part("late", 0, 30, python("pass")),
        parts.Part("absent", 0, 30, (), lacks="nvcc not found"),
        total=3.0,
    )
    assert found["late"]["why"] == "out of time" and found["absent"]["why"] == "nvcc not found"


@pytest.mark.parametrize("quick", [False, True])
def test_the_parts_for_a_gpu_fit_into_the_time(tmp_path, quick):
    made = parts.of("cuda", tmp_path, quick)
    boxes = {}
    for part in made:
        if part.name != "library":  # a prebuilt one is expected to load
            boxes[part.stage] = max(boxes.get(part.stage, 0), part.box)
    assert sum(boxes.values()) <= gpu.TOTAL[quick] + 40 and gpu.TOTAL[quick] < (180 if quick else 540)
    names = [part.name for part in made]
    assert {f"tests-{op}-{b}" for op in parts.OP_TESTS for b in parts.BACKENDS if b != "triton"} <= set(names)
    shares = range(1, parts.TRITON_SHARES + 1)
    assert {f"tests-{op}-triton-{i}" for op in parts.OP_TESTS for i in shares} <= set(names)
    waves = [[part for part in made if part.stage == stage] for stage in (2, 3)]
    assert all("triton" in p.name or "check" in p.name for p in waves[1]) and len(waves[1]) <= 16, (
        "cores of the machine"
    )
    assert {
        "instructions",
        "instructions-hopper",
        "instructions-boxes",
        "instructions-multicast",
        "instructions-stores",
        "instructions-clusters",
        "tests-conv-plane",
        "tests-conv-strip",
        "tests-conv-cluster",
        "tests-fp8",
        "probes",
        "memcheck",
        "racecheck",
        "steering",
        "inference-256",
        "kernels",
    } <= set(names)
    assert quick or {"latency", "fp8", "training", "tune", "compiled", "inference-1", "inference-32"} <= set(names)
    assert len({part.stage for part in made if part.stage > 3}) == len([p for p in made if p.stage > 3]), (
        "one at a time"
    )
    for part in made:
        if "-m" in part.command and "pytest" in part.command:
            assert (ROOT / next(a for a in part.command if a.startswith("tests/"))).is_file()


@pytest.mark.slow("compiles for a GPU")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("name", "instructions"), [
    ("bandwidth", ("UBLKCP", "UCGABAR_ARV")),
    ("wgmma", ("HGMMA.64x256x16.F32.BF16",)),
    ("dependent", ("ACQBULK", "PREEXIT")),
])  # fmt: skip
def test_a_probe_compiles_to_the_instructions_it_measures(tmp_path, name, instructions):
    """As `make gpu` compiles it, to a program: what other flags add to one may not assemble."""
    source, binary = parts.PROBES / f"{name}.cu", tmp_path / name
    flags = [*parts.PROBE_FLAGS.split(), "-Werror", "all-warnings"]
    done = subprocess.run(["nvcc", *flags, source, "-o", binary], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if (tool := aot_cuda.cuobjdump()) is not None:
        sass = subprocess.run([tool, "-sass", binary], capture_output=True, text=True, check=True, timeout=60).stdout
        assert [i for i in instructions if i not in sass] == []


def test_every_probe_is_tested():
    assert {p.stem for p in parts.PROBES.glob("*.cu")} == {"bandwidth", "wgmma", "dependent"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_probe_that_fails_leaves_the_others_their_turn(tmp_path, monkeypatch):
    for name, text in (("a", "#error"), ("b", '#include <cstdio>\nint main() { std::puts("b ran"); }\n')):
        (tmp_path / f"{name}.cu").write_text(text)
    monkeypatch.setattr(parts, "PROBES", tmp_path)
    record = run(tmp_path, parts.probes(60))["probes"]
    assert record["state"] == "FAILED" and record["last"][-1] == "b ran"


@pytest.mark.parametrize(("given", "there", "python"), [
    ({}, True, ".venv/bin/python"),
    ({}, False, "python3"),
    ({"VIRTUAL_ENV": "/an/environment"}, True, "python3"),
    ({"PYTHON": "python3.12"}, True, "python3.12"),
])  # fmt: skip
def test_the_python_of_make_gpu(tmp_path, given, there, python):
    """The environment that `make` has made, unless another one is asked for; nothing is installed."""
    if there:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").touch()
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")} | given
    command = ["make", "-s", "-n", "-C", tmp_path, "-f", ROOT / "Makefile", "gpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:3] == [python, "-m", "benchmarks.gpu"]


@pytest.mark.slow("compiles for a GPU")
def test_kernels_are_compiled_ahead_of_time(tmp_path):
    """Without a GPU, into the cache that the parts share; each file is there once. Few of the launches: each takes seconds."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    line = ("--arch", "90", "--model", "resnet20", "--size", "32", "--batch", "2")
    few = "from benchmarks.gpu import warm as w; all = w.jobs; w.jobs = lambda *args: all(*args)[::4]"
    code = f"import sys; {few}; sys.exit(w.options.run(w.main, {line}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    launches = int(re.fullmatch(r"Triton's kernels of (\d+) launches are compiled for sm_90\n", done.stdout).group(1))
    assert launches >= 5 and 2 <= len(list(tmp_path.rglob("*.cubin"))) <= launches


@pytest.mark.parametrize(("line", "message"), [
    ("--device cpu", "only with --smoke"),
    ("--device cpu --smoke --parts dance", "no part starts with 'dance'"),
    ("--device tpu", "invalid choice: 'tpu'"),
])  # fmt: skip
def test_wrong_arguments(capsys, tmp_path, line, message):
    assert options.run(gpu.main, [*line.split(), "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
