"""No code from data: nothing is evaluated, unpickled or given to a shell, and files are written where the user said."""

import ast
from pathlib import Path

import pytest
from PIL import Image
from repository import ROOT, tracked

from resnet_fused.commands import photo
from resnet_fused.measure import remembered

SOURCES = [*tracked("resnet_fused/*.py", "tools/*.py", "examples/*.py"), ROOT / "setup.py"]
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "yaml.load", "tempfile.mktemp", "torch.hub.load", "shelve.open",
}  # fmt: skip
WRITES = {"write_text", "write_bytes", "mkdir", "makedirs", "savefig", "unlink", "rename", "mkstemp"}


def calls(path):
    """(dotted name, node) of every call in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, f = [], node.func
            while isinstance(f, ast.Attribute):
                name.append(f.attr)
                f = f.value
            yield ".".join([f.id if isinstance(f, ast.Name) else "?", *reversed(name)]), node


def keyword(node, name):
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_from_data(path):
    for name, node in calls(path):
        assert name not in FORBIDDEN, f"line {node.lineno}: {name}"
        assert not keyword(node, "shell"), f"line {node.lineno}: shell=True"
        if name == "torch.load":
            assert keyword(node, "weights_only") is True, f"line {node.lineno}: torch.load without weights_only=True"


# The files that write what the user asked for by name: a chart, an engine, a run of training. remembered.py keeps a cache.
WRITERS = {"demo.py", "bench.py", "file.py", "remembered.py", "checkpoint.py", "report.py", "run.py"}


def test_files_are_written_in_few_places():
    """Whoever adds one: a cache that others can write to is data from others; its folder has mode 0o700."""
    found = set()
    for path in tracked("resnet_fused/*.py"):
        for name, node in calls(path):
            opened = name == "open" and len(node.args) > 1 and "r" not in getattr(node.args[1], "value", "r")
            if opened or name.rpartition(".")[2] in WRITES:
                found.add(path.name)
    assert found and found <= WRITERS


def test_the_folder_of_tuning_results_belongs_to_the_user(tmp_path):
    remembered.Table({"device": "cpu", "arch": "test"}, tmp_path / "cache").store({})
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o022 == 0 for path in (tmp_path / "cache").iterdir())


def test_the_check_sees_calls(tmp_path):
    (tmp_path / "bad.py").write_text("import os\nos.system('x')\ntorch.load(f)\nrun('x', shell=True)\neval('1')\n")
    assert [name for name, _ in calls(tmp_path / "bad.py")] == ["os.system", "torch.load", "run", "eval"]


@pytest.mark.parametrize("suffix", ["eps", "pdf", "ico", "ppm"])
def test_only_formats_of_photographs_are_opened(tmp_path, suffix):
    """Pillow gives EPS files to Ghostscript, and rare formats have rare bugs."""
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(ValueError, match="is not an image that can be read"):
        photo.load(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_photographs_are_opened(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (64, 64)).save(path)
    assert photo.load(path).shape == (3, 224, 224)


def test_the_only_dependency_is_torch():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'dependencies = ["torch>=2.11"]\n' in text
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in pins) and Path(ROOT / "constraints.txt").is_file()
