"""The house of the tests: what they share stands in tests/support or in a conftest.py; the files that are named exist."""

import ast
import os
import re
import subprocess
import sys

import asked
import pytest
from repository import ROOT, tracked

FILES = sorted((ROOT / "tests").rglob("*.py"))


def imported(text):
    """The top-level names of what Python text imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_no_file_imports_a_file_of_tests():
    tests = {path.stem for path in FILES if path.name.startswith("test_")}
    found = {str(path.relative_to(ROOT)): imported(path.read_text()) & tests for path in FILES}
    assert len(found) > 100 and {path: names for path, names in found.items() if names} == {}


def test_the_check_sees_imports():
    assert imported("import a.b, c\ndef f():\n    from test_x import y\nfrom . import z\n") == {"a", "c", "test_x"}


@pytest.mark.parametrize(("arguments", "options", "expected"), [
    ("pytest tests", "", False),
    ("pytest --device=cuda", "", True),
    ("pytest --device cuda tests", "", True),
    ("pytest", "-q --device=cuda", True),
    ("pytest --device=cpu", "--device=cuda", False),  # the last one counts, as for pytest
])  # fmt: skip
def test_a_gpu_is_asked_for_by_an_option(arguments, options, expected):
    assert asked.for_a_gpu(arguments.split(), {"PYTEST_ADDOPTS": options}) is expected


@pytest.mark.parametrize(("arguments", "before", "after"), [
    ("pytest", {}, {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}),
    ("pytest", {"CUDA_VISIBLE_DEVICES": "3"}, {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}),
    ("pytest --device=cuda", {"CUDA_VISIBLE_DEVICES": "3"}, {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "3"}),
    ("-c", {"TRITON_INTERPRET": "0"}, {"TRITON_INTERPRET": "0"}),  # a process of xdist, which has no arguments
])  # fmt: skip
def test_what_is_settled_before_imports(arguments, before, after):
    assert before | asked.settled(arguments.split(), before) == after


def test_a_machine_with_a_gpu_runs_the_same_tests():
    """Commands that choose a device themselves and Triton's interpreter run beside a GPU that cannot be used. All tests of
    three folders are collected for it; all of all folders would take 17 seconds."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests/support"), str(ROOT)]), "PYTEST_ADDOPTS": ""}
    folders = ["tests/commands", "tests/reports", "tests/kernels/triton"]
    few = "test_cli and (test_info or test_explain) or test_add_relu_tails_and_aliasing"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fake_gpu", "-p", "no:cacheprovider", *folders, "-k", few]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0 and re.search(r"\b8 passed", last), done.stdout[-3000:] + done.stderr
    assert int(re.search(r"(\d+) deselected", last).group(1)) > 300, "not all tests were collected"


NAMED = re.compile(
    r"(?<![\w/])(?:tests|benchmarks|tools|examples|resnet_fused)/[\w./]*\.(?:py|cpp|h|cu)\b|(?<![\w/])test_\w+\.py\b"
)


def absent(text):
    """The files that `text` names and the repository does not have."""
    tests = {path.name for path in FILES}
    return [name for name in NAMED.findall(text) if not (name in tests if "/" not in name else (ROOT / name).is_file())]


def test_files_that_are_named_exist():
    sources = [
        path for path in tracked("*.py", "Makefile", ".ci/run", "pyproject.toml") if path.name != "test_tests.py"
    ]
    found = {str(path.relative_to(ROOT)): absent(path.read_text()) for path in sources}
    assert len(found) > 100 and {path: names for path, names in found.items() if names} == {}


def test_the_check_of_names_sees_absent_files():
    text = "tests/house/test_tests.py, see test_tests.py and tests/test_tests.py, test_gone.py: tools/gone/x.py"
    assert absent(text) == ["tests/test_tests.py", "test_gone.py", "tools/gone/x.py"]


LEFT_OUT = ("slow", "exhaustive")
MARKS = [f"pytest.mark.{name}" for name in (*LEFT_OUT, "skip")]


def marks(path):
    """(name, line, arguments) of every pytest.mark.slow, exhaustive and skip in a file; None where it is not called."""
    tree = ast.parse(path.read_text())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in MARKS:
            call = calls.get(id(node))
            yield node.attr, node.lineno, call and [a.value for a in call.args if isinstance(a, ast.Constant)]


def test_what_is_left_out_by_default_has_a_reason():
    found = {f"{path.name}:{line}": reason for path in FILES for name, line, reason in marks(path) if name in LEFT_OUT}
    assert found and {place: reason for place, reason in found.items() if not reason or len(reason[0]) < 10} == {}


def skips(path):
    """The lines of pytest.skip that no condition stands above."""
    found = []

    def walk(node, conditional):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.skip" and not conditional:
            found.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            walk(child, conditional or isinstance(node, (ast.If, ast.ExceptHandler)))

    walk(ast.parse(path.read_text()), False)
    return found


def test_nothing_is_skipped_by_everyone(tmp_path):
    found = {path.name: [line for name, line, _ in marks(path) if name == "skip"] + skips(path) for path in FILES}
    assert {name: lines for name, lines in found.items() if lines} == {}
    bad = tmp_path / "bad.py"
    bad.write_text("if x:\n    pytest.skip('a')\npytest.skip('b')\npytest.mark.skip\n")
    assert skips(bad) == [3] and list(marks(bad)) == [("skip", 4, None)]
