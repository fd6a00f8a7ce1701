"""The rules of the house: imports go down, every op stands in every room, files stay small, README tells the truth."""

import ast
import os
import re
import subprocess
import sys

import pytest
from repository import ROOT, tracked

from resnet_fused import ops
from resnet_fused.kernels import env, passes

PACKAGE, BENCHMARKS = ROOT / "resnet_fused", ROOT / "benchmarks"
PASSES = [op for op in ops.__all__ if op in passes.OPS]
CONVOLUTIONS = ["conv_bn_relu"]  # the other ops of a convolution are kernels or compositions of the same files
README = (ROOT / "README.md").read_text()
# From the bottom up. A module imports only from floors below its own, and within its own room (below: no circle).
FLOORS = (
    ("version",),
    ("kernels",),
    ("measure",),
    ("dispatch",),
    ("ops",),
    ("modules",),
    ("models", "nn"),
    ("conversion",),
    ("frozen",),
    ("reports",),
    ("commands", "__init__"),
    ("__main__",),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS, 1) for room in rooms}


def imports_of(path, package=PACKAGE):
    """The modules of `package`, as dotted names below it, that the module at `path` imports, anywhere in it."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*(here[: -node.level] if node.level else []), *(node.module or "").split(".")]
            for alias in node.names:
                module = [*filter(None, base), alias.name]
                found.add(".".join(module if is_module(module) else module[:-1]))
    return {
        name.removeprefix(package.name).removeprefix(".") or "__init__"
        for name in found
        if name.partition(".")[0] == package.name
    }


def is_module(parts):
    place = ROOT.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def modules(package=PACKAGE):
    """{dotted name below `package`: path} of every module of it."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def upwards(name, imported):
    """A sentence for each of the imports of the module `name` that does not go down."""
    height = HEIGHT[name.split(".")[0]]
    for other in sorted(imported):
        room = other.split(".")[0]
        if room != name.split(".")[0] and HEIGHT[room] >= height:
            yield f"{name} (floor {height}) imports {other} (floor {HEIGHT[room]})"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    assert list(upwards(name, imports_of(MODULES[name]))) == []


def circle(imports):
    """The modules of one circle among `imports`, {module: the modules it imports}, in order; empty if there is none."""
    left = dict(imports)
    while leaves := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in leaves:
            del left[name]
    path = sorted(left)[:1]  # all that are left import one that is left
    while path and path.count(path[-1]) < 2:
        path.append(min(left[path[-1]] & left.keys()))
    return path[path.index(path[-1]) :] if path else []


@pytest.mark.parametrize("package", [PACKAGE, BENCHMARKS], ids=lambda path: path.name)
def test_no_circle(package):
    found = circle({name: imports_of(path, package) - {name} for name, path in modules(package).items()})
    assert not found, " imports ".join(found)


def test_a_circle_and_an_import_upwards_are_named():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert list(upwards("kernels.cpu", {"ops.bn_relu", "version", "kernels.shapes"})) == [
        "kernels.cpu (floor 2) imports ops.bn_relu (floor 5)"
    ]


def test_the_import_check_sees_imports():
    assert imports_of(PACKAGE / "models" / "resnet.py") >= {"modules.eligible", "models.weights"}
    assert imports_of(PACKAGE / "ops" / "bn_relu.py") >= {"dispatch", "kernels.layout", "ops.define"}
    assert imports_of(PACKAGE / "kernels" / "library.py") == {"version"}
    assert imports_of(BENCHMARKS / "gpu" / "__main__.py", BENCHMARKS) >= {"report", "rows", "gpu.parts"}


# oneDNN's convolution stands in for conv_bn_relu in csrc/cpu; its epilogue is bn_relu.
ROOMS = {
    "resnet_fused/kernels/triton/{}.py": PASSES + CONVOLUTIONS,
    "csrc/cuda/norms/{}.cu": PASSES,
    "csrc/cuda/conv/{}.cu": CONVOLUTIONS,
    "csrc/cpu/norms/isa/{}.cpp": PASSES,
    "tests/ops/test_{}.py": ops.__all__,
}


@pytest.mark.parametrize(("room", "stem"), [(room, stem) for room, stems in ROOMS.items() for stem in stems])
def test_every_op_stands_in_every_room(room, stem):
    assert (ROOT / room.format(stem)).is_file()


def test_every_public_op_has_a_module_of_its_name():
    modules = {p.stem for p in (PACKAGE / "ops").glob("*.py")}
    assert modules - {"__init__", "define", "decompositions"} == set(ops.__all__)


def test_files_stay_small():
    sources = tracked("*.py", "csrc/*", "tests/emulator/*")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert len(lengths) > 50
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def variables_in(text):
    return set(re.findall(r"\bRESNET_FUSED_[A-Z_]+\b", text))


def test_environment_variables_are_read_in_one_file():
    own = {name for name in env.VARIABLES if name.startswith("RESNET_FUSED_")}
    assert own == variables_in((PACKAGE / "kernels" / "env.py").read_text())
    for path in PACKAGE.rglob("*.py"):
        if path.name != "env.py":
            reads = re.findall(r"environ(?:\.get\(|\[)\"(RESNET_FUSED_\w+)", path.read_text())
            assert reads == [], f"{path.name} reads {reads}"
    elsewhere = "".join(p.read_text() for p in tracked("csrc/*", "setup.py", "tools/*.py"))
    assert set(re.findall(r"(?:getenv\(|environ(?:\.get\(|\[))\"(RESNET_FUSED_\w+)", elsewhere)) <= own


def test_make_targets_in_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text() and "make test" in README


def test_the_import_brings_no_compiler():
    """Nothing of torch that `import torch` leaves out, nor another package: torch._dynamo alone takes two seconds."""
    code = "import sys, torch; before = set(sys.modules); import resnet_fused; print(*set(sys.modules) - before)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert "resnet_fused" in new and new - sys.stdlib_module_names == {"resnet_fused"}
