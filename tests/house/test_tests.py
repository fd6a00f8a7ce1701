"""The house of the tests: what they share stands in tests/support or in a conftest.py."""

import ast

from repository import ROOT

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
