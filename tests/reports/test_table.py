"""Tables: aligned, and no wider than the terminal that they are shown in."""

import pytest
import torch

import resnet_fused
from resnet_fused.reports import explain, table

COLUMNS = {"layer": "layer", "dtype": "dtype", "n": "images", "why": "reason"}
LONG = "torch's convolution, then one fused pass: Winograd is for 3x3 convolutions of stride 1"
ROWS = [
    {"layer": "layer1.0.conv1", "dtype": "float32", "n": 7, "why": "default"},
    {"layer": "layer1.0.conv2", "dtype": "float32", "n": 10, "why": LONG},
    {"layer": "layer1.1.conv1", "dtype": "bfloat16", "n": 8, "why": LONG},
]


def test_without_a_limit_a_row_is_a_line():
    assert table.render(COLUMNS, ROWS).splitlines() == [
        "layer           dtype     images  reason",
        f"--------------  --------  ------  {'-' * len(LONG)}",
        "layer1.0.conv1  float32        7  default",
        f"layer1.0.conv2  float32       10  {LONG}",
        f"layer1.1.conv1  bfloat16       8  {LONG}",
    ]


def test_long_texts_become_notes():
    assert table.render(COLUMNS, ROWS, 60).splitlines() == [
        "layer           dtype     images  reason",
        "--------------  --------  ------  -------",
        "layer1.0.conv1  float32        7  default",
        "layer1.0.conv2  float32       10  [1]",
        "layer1.1.conv1  bfloat16       8  [1]",
        "",
        "[1] torch's convolution, then one fused pass: Winograd is",
        "    for 3x3 convolutions of stride 1",
    ]


def test_a_column_with_few_values_becomes_headings():
    assert table.render(COLUMNS, ROWS, 38).splitlines()[:7] == [
        "dtype: float32",
        "layer           images  reason",
        "--------------  ------  -------",
        "layer1.0.conv1       7  default",
        "layer1.0.conv2      10  [1]",
        "",
        "dtype: bfloat16",
    ]


def test_what_remains_is_wrapped():
    columns, rows = {"a": "a", "b": "b"}, [{"a": "one two three four five", "b": 1}, {"a": "six", "b": 2}]
    assert table.render(columns, rows, 16).splitlines() == [
        "a              b",
        "-------------  -",
        "one two three  1",
        "four five",
        "six            2",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_is_lost_at_any_width(width):
    text = table.render(COLUMNS, ROWS, width)
    assert max(map(len, text.splitlines())) <= width
    assert set(LONG.split()) <= set(text.split()) and "layer1.1.conv1" in text


def test_sentences_are_wrapped_behind_their_beginning():
    line = f"  native  {LONG}"
    assert table.fit(line, 10, 200) == line
    first, *more = table.fit(line, 10, 40).splitlines()
    assert first.startswith("  native  torch's") and all(text.startswith(" " * 10) for text in more)
    assert " ".join([first, *more]).split() == line.split() and max(map(len, [first, *more])) <= 40


def test_no_rows_are_headings_alone():
    assert table.render(COLUMNS, [], 10).splitlines()[0] == "layer  dtype  images  reason"


def test_explain_fits_80_columns():
    model, x = resnet_fused.resnet18().eval(), torch.randn(1, 3, 64, 64)
    text = table.render(explain.COLUMNS, resnet_fused.explain(model, x).rows, 80)
    assert max(map(len, text.splitlines())) <= 80
