"""docs/matrix.md tells the truth: every experiment is repeated (the column of our own networks; with --all every column)."""

import re

import matrix
import matrix_networks
import pytest
import write_matrix  # noqa: F401 (registers the rows)
from nets import NETS

CELL = re.compile(r"fused(, .+)?|(fused but for one|by fallback|refused|refused as in eager) \(.+\)")


@pytest.mark.parametrize("label", matrix.ROWS)
def test_a_row(label, request):
    if "AOTInductor" in label and not request.config.getoption("--all"):
        pytest.skip("only with --all: it compiles")
    if "ONNX" in label:
        pytest.importorskip(
            "onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime onnxscript"
        )
    expected = matrix.documented()[label]
    holders = list(matrix.COLUMNS) if request.config.getoption("--all") else ["ours"]
    for holder, text in zip(holders, expected, strict=False):
        assert matrix.cell(label, holder) == text, f"{holder}: run python tests/reports/write_matrix.py"


@pytest.mark.parametrize("label", NETS)
def test_a_network(label, request):
    if not request.config.getoption("--all"):
        pytest.skip("only with --all; test_convert.py checks the numbers")
    assert matrix_networks.row_of(label) == matrix.documented()[label], "run python tests/reports/write_matrix.py"


def test_no_cell_is_empty_and_no_row_is_missing():
    documented = matrix.documented()
    assert list(documented) == [*NETS, *matrix.ROWS] and len(documented) > 80
    for label, cells in documented.items():
        assert len(cells) == len(matrix.COLUMNS) == len(matrix_networks.COLUMNS), label
        assert all(CELL.fullmatch(text) for text in cells), (label, cells)


def test_an_experiment_that_fails_is_seen(monkeypatch):
    monkeypatch.setitem(
        matrix.ROWS, "off", ("", lambda model, x: [model(x) * (1.1 if hasattr(model, "why_not_fused") else 1)])
    )
    with pytest.raises(AssertionError):
        matrix.cell("off", "ours")
    monkeypatch.setitem(matrix.ROWS, "off", ("", lambda model, x: 1 / 0))
    assert matrix.cell("off", "ours") == "refused as in eager (ZeroDivisionError: division by zero)"
