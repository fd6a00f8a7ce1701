"""The pages are current, their links lead somewhere, and their Python runs."""

import importlib.util
import re

import pytest
from foreign import timm, tv  # noqa: F401 (the pages import torchvision and timm, which need the shim)
from repository import ROOT, tracked

PAGES = [ROOT / "README.md", *tracked("docs/*.md")]


def api():
    spec = importlib.util.spec_from_file_location("api", ROOT / "tools" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    assert (ROOT / "docs" / "api.md").read_text() == api().page(), "run python tools/api.py (or make docs)"


def test_every_public_name_is_documented():
    for _, entries in api().sections():
        for name, thing in entries:
            assert (thing.__doc__ or "").strip(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:docs|tests|tools|examples|csrc|resnet_fused)/[\w/.]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_python_of_the_migration_page_runs(capsys):
    text = (ROOT / "docs" / "migration.md").read_text()
    blocks, names = re.findall(r"```python\n(.*?)```", text, re.DOTALL), {}
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "docs/migration.md", "exec"), names)
    assert "layer4.1" in capsys.readouterr().out
    features = names["features"](names["torch"].randn(1, 3, 64, 64))
    assert names["y"].shape == names["z"].shape and features.keys() == {"layer2", "layer4"}


def test_every_environment_word_of_the_paths_page_is_real():
    from resnet_fused import dispatch

    text = (ROOT / "docs" / "which-path.md").read_text()
    assert all(f"`{name}`" in text for name in dispatch.BACKENDS if name != "emulator")
