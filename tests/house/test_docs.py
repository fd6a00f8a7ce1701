"""The pages are current, short and linked, what they name exists, and their Python runs."""

import importlib.util
import re
import subprocess
import sys

import pytest
from foreign import timm, tv  # noqa: F401 (the pages import torchvision and timm, which need the shim)
from repository import ROOT, tracked

import resnet_fused

DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "TRAPS.md")), *sorted(DOCS.rglob("*.md"))]
API = DOCS / "reference" / "api.md"  # generated from docstrings, as long as they are
LONGEST = {ROOT / "README.md": 60}  # lines
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def api():
    spec = importlib.util.spec_from_file_location("api", ROOT / "tools" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    assert API.read_text() == api().page(), "run python tools/api.py (or make docs)"


def test_every_public_name_is_documented():
    for _, entries in api().sections():
        for name, thing in entries:
            assert (thing.__doc__ or "").strip(), name


def blocks_of(page):
    """[(marks, code)] of the page's Python. A block marked `gpu` or `network` needs one and is only compiled."""
    return re.findall(r"^```python *([^\n]*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


WITH_PYTHON = [page for page in PAGES if blocks_of(page)]


def test_pages_with_python_are_found():
    assert {page.name for page in WITH_PYTHON} >= {"README.md", "converting.md", "freezing.md", "training.md", "fp8.md"}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.name)
def test_python_runs(page, tmp_path, monkeypatch, own_cache, capsys):
    monkeypatch.chdir(tmp_path)  # engines are saved
    names = {}
    for marks, code in blocks_of(page):
        assert marks in ("", "gpu", "network"), marks
        # Smaller images: the same calls in a fraction of the time.
        compiled = compile(code.replace("224, 224", "64, 64"), str(page), "exec")
        if not marks:
            exec(compiled, names)
    if page.name == "converting.md":
        assert "layer4.1" in capsys.readouterr().out
        features = names["features"](names["torch"].randn(1, 3, 64, 64))
        assert names["y"].shape == names["z"].shape and features.keys() == {"layer2", "layer4"}
    if page.name == "freezing.md":
        assert names["again"](names["images"]).shape == names["logits"].shape == (2, 10)


@every_page
def test_pages_stay_short(page):
    if page != API:
        assert len(page.read_text().splitlines()) <= LONGEST.get(page, 200)


def anchors(text):
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.M)
    }


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            name, _, anchor = target.partition("#")
            found = (page.parent / name).resolve() if name else page
            assert found.is_file(), target
            assert not anchor or anchor in anchors(found.read_text()), target


def test_the_index_names_every_page():
    linked = {(DOCS / name).resolve() for name in re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text())}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def paths_in(text):
    rooms = "docs|tests|tools|examples|csrc|resnet_fused|benchmarks"
    return re.findall(rf"`((?:{rooms})/[\w/.-]*)`", text)


@every_page
def test_paths_that_a_page_names_exist(page):
    assert [name for name in paths_in(page.read_text()) if not (ROOT / name).exists()] == []


def test_the_path_check_sees_paths():
    assert paths_in("`csrc/ops.h`, `csrc/cpu/`, `docs/a_b.md` and csrc/x.h, `csrc/<op>.cu`") == [
        "csrc/ops.h",
        "csrc/cpu/",
        "docs/a_b.md",
    ]


def test_pages_that_sources_name_exist():
    sources = tracked("*.py", "csrc/*", "tests/emulator/*", "Makefile")
    named = set(re.findall(r"docs/[a-z/0-9-]+\.md", "".join(path.read_text() for path in sources)))
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@every_page
def test_commands_that_a_page_names_exist(page):
    text = page.read_text()
    for module in set(re.findall(r"python -m ((?:benchmarks|resnet_fused)(?:\.\w+)*)", text)):
        assert importlib.util.find_spec(module), module
    for script in set(re.findall(r"python ((?:tools|tests|examples)/[\w/]+\.py)", text)):
        assert (ROOT / script).is_file(), script
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_the_readme_says_how_to_begin():
    text = (ROOT / "README.md").read_text()
    assert re.search(r"^    make demo ", text, re.M) and re.search(r"^    make test ", text, re.M)


def first_column(table):
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def package_backends():
    return [name for name in resnet_fused.backends() if name != "emulator"]


def test_the_table_of_backends_is_that_of_the_package():
    table = (DOCS / "design" / "backends.md").read_text().split("\n## ")[0]
    assert sorted(first_column(table)) == sorted(package_backends())


def test_the_paths_page_names_every_backend():
    text = (DOCS / "guide" / "which-path.md").read_text()
    assert [name for name in package_backends() if f"`{name}`" not in text] == []


def test_the_environment_page_is_that_of_the_package():
    command = [sys.executable, "-m", "resnet_fused", "info"]
    info = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    variables = re.findall(r"^  (RESNET_FUSED_\w+) ", info, re.MULTILINE)
    listed = first_column((DOCS / "reference" / "environment.md").read_text())
    assert variables and sorted(variables) == sorted(name for name in listed if name.startswith("RESNET_FUSED"))


def test_recipes_are_short_and_say_how_many_files_they_touch():
    recipes = (ROOT / "CONTRIBUTING.md").read_text().split("## Recipe: ")[1:]
    assert len(recipes) == 5
    for recipe in recipes:
        steps = re.findall(r"^\d\. .*", recipe, re.MULTILINE)
        assert 4 <= len(steps) <= 8 and re.search(r"[Yy]ou touched \d+ files", recipe), recipe.splitlines()[0]
