"""The rules of the house: imports go down, every op stands in every room, files stay small, README tells the truth."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "resnet_fused"
STEMS = ("add_relu", "bn_relu", "conv_bn_relu")
README = (ROOT / "README.md").read_text()
# Which floors each floor may import from; a module that is not named is on the top floor and may import all.
FLOORS = {
    "_env": set(),
    "layout": set(),
    "launch": set(),
    "plane": {"launch"},
    "patch": {"launch", "plane"},
    "fp8": {"launch", "_env"},
    "weight_grad": {"launch"},
    "kernels": {"launch", "layout", "plane", "patch", "weight_grad", "_env"},
    "native": {"_env", "__version__"},
    "machine": {"native"},
    "tuning": {"machine", "_env"},
    "cpu_conv": {"native"},
    "cuda_plane": {"plane"},
    "cuda_strip": {"plane"},
    "_backends": {"kernels", "native", "plane", "patch", "cuda_plane", "cuda_strip", "_env"},
    "dispatch": {"_backends", "tuning", "cpu_conv", "native", "launch", "layout", "weight_grad", "_env"},
    "ops": {"dispatch", "fp8", "kernels", "native", "launch", "layout", "_env"},
    "norms": set(),
    "blocks": {"norms", "ops", "dispatch", "layout"},
    "train_path": {"norms", "blocks", "ops", "dispatch", "layout"},
    "cpu_block": {"blocks", "ops", "dispatch", "layout", "native", "zero_pad"},
    "weights": set(),
    "zero_pad": set(),
    "resnet": {"blocks", "cpu_block", "train_path", "weights", "zero_pad"},
}


def tracked(*patterns):
    """Files of the repository, and those about to join it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def floor_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports_of(path):
    """The floors that the module at `path` imports, anywhere in it."""
    here = ["resnet_fused", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) + "." * bool(node.module) if node.level else ""
            module = base + (node.module or "")
            found |= {module} if module != "resnet_fused" else {f"resnet_fused.{alias.name}" for alias in node.names}
            if module in ("resnet_fused.ops", "resnet_fused.kernels"):
                found.add(module)
    return {name.split(".")[1] for name in found if name.startswith("resnet_fused.")}


@pytest.mark.parametrize("path", [p for p in PACKAGE.rglob("*.py") if floor_of(p) in FLOORS], ids=lambda p: p.name)
def test_imports_go_down(path):
    floor = floor_of(path)
    assert imports_of(path) - {floor} <= FLOORS[floor]


def test_the_import_check_sees_imports():
    assert imports_of(PACKAGE / "resnet.py") >= {"blocks", "weights"}
    assert imports_of(PACKAGE / "ops" / "bn_relu.py") >= {"dispatch", "layout", "ops"}
    assert imports_of(PACKAGE / "native.py") == {"__version__"}


# oneDNN's convolution stands in for conv_bn_relu in csrc/cpu; its epilogue is bn_relu.
ROOMS = {
    "resnet_fused/ops/{}.py": STEMS,
    "resnet_fused/kernels/{}.py": STEMS,
    "csrc/cuda/norms/{}.cu": STEMS[:2],
    "csrc/cuda/conv/{}.cu": STEMS[2:],
    "csrc/cpu/norms/isa/{}.cpp": STEMS[:2],
    "tests/test_{}.py": STEMS,
}


@pytest.mark.parametrize(("room", "stem"), [(room, stem) for room, stems in ROOMS.items() for stem in stems])
def test_every_op_stands_in_every_room(room, stem):
    assert (ROOT / room.format(stem)).is_file()


def test_no_op_stands_elsewhere():
    ops = {p.stem for p in (PACKAGE / "ops").glob("[!_]*.py")}
    assert ops == set(STEMS) == {p.stem for p in (PACKAGE / "kernels").glob("[!_]*.py")}


def test_files_stay_small():
    sources = tracked("*.py", "csrc/*", "tests/emulator/*")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert len(lengths) > 50
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def variables_in(text):
    return set(re.findall(r"\bRESNET_FUSED_[A-Z_]+\b", text))


def test_environment_variables_are_read_in_one_file_and_listed_in_readme():
    own = variables_in((PACKAGE / "_env.py").read_text())
    table = set(re.findall(r"^\| `(RESNET_FUSED_\w+)`", README, re.MULTILINE))
    assert own == table
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_env.py":
            reads = re.findall(r"environ(?:\.get\(|\[)\"(RESNET_FUSED_\w+)", path.read_text())
            assert reads == [], f"{path.name} reads {reads}"
    elsewhere = "".join(p.read_text() for p in tracked("csrc/*", "setup.py", "tools/*.py"))
    assert set(re.findall(r"(?:getenv\(|environ(?:\.get\(|\[))\"(RESNET_FUSED_\w+)", elsewhere)) <= own


def test_the_map_in_readme_names_every_module_of_the_package():
    named = set(re.findall(r"`(?:resnet_fused/)?(\w+)\.py`", README[README.index("## Map") :]))
    modules = {p.stem for p in tracked("resnet_fused/*.py") if p.parent == PACKAGE and not p.stem.startswith("__")}
    assert modules <= named
    assert all(f"`resnet_fused/{room}/<op>.py`" in README for room in ("ops", "kernels"))


def test_make_targets_in_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text() and "`make test`" in README
