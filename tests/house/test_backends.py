"""One list of backends (kernels/table.py): no other room of the package knows a backend by its name."""

import ast

import pytest
from repository import ROOT

from resnet_fused.kernels.table import BACKENDS

PACKAGE = ROOT / "resnet_fused"
OTHERS = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "kernels"]
OWN = {"native", "cuda_plane", "cuda_strip"}  # the others are names of packages, devices and columns as well
ALL = set(BACKENDS) | {"emulator"}
# Where a name stands for a backend, whatever else it may mean: choices, lookups, comparisons.
CALLS = {"Choice", "backend", "check_backend"}
ATTRIBUTES = {"backend", "choice", "name"}


def named(text):
    """[(line, name)] of the backends that the source `text` names."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in OWN:
            found.append((node.lineno, node.value))
        suspects = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            suspects = node.args[:1] if called in CALLS else []
        elif isinstance(node, ast.Subscript):
            suspects = [node.slice] if "BACKENDS" in ast.unparse(node.value) else []
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr in ATTRIBUTES for side in sides):
                suspects = [part for side in sides for part in ast.walk(side)]
        found += [(s.lineno, s.value) for s in suspects if isinstance(s, ast.Constant) and s.value in ALL]
    return sorted(set(found))


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_backend_is_named(path):
    assert named(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        'takes("cuda_plane")',
        'Choice("torch", why)',
        'with dispatch.backend("eager"): run()',
        'BACKENDS["cuda"].why_not()',
        'choice.backend in ("torch", "eager")',
        'backend.name == "triton"',
    ],
)
def test_a_name_is_seen(text):
    assert len(named(text)) >= 1


def test_the_key_of_a_backend_is_its_name():
    assert [backend.name for backend in BACKENDS.values()] == list(BACKENDS)
    assert all(backend.otherwise in BACKENDS for backend in BACKENDS.values())
