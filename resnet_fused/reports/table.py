"""Rows of text in aligned columns, as wide as they are, or as a terminal."""

import itertools
import os
import shutil
import sys
import textwrap

NOTE = 12  # a last column that is longer than this becomes notes under a table that is too wide


def terminal():
    """The columns that output may have: those that COLUMNS names, else those of the terminal, without a limit elsewhere."""
    named = os.environ.get("COLUMNS", "").isdecimal()
    return shutil.get_terminal_size().columns if named or sys.stdout.isatty() else sys.maxsize


def fit(line, indent=0, width=None):
    """`line` as one line where it fits, else wrapped; lines after the first begin with `indent` blanks."""
    width = width or terminal()
    if len(line) <= width:
        return line
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
        drop_whitespace=True,
    )


def render(columns, rows, width=None):
    """`columns`: {key of a row: heading}; numbers are aligned to the right.

    What is wider than `width` (default: the terminal's, without a limit elsewhere) is made to fit. Long texts at the end of
    rows are written once each, under the table. A column with few values becomes headings. What remains is wrapped.
    """
    width = width or terminal()
    rows = [{key: str(row[key]) for key in columns} for row in rows]
    if _width(columns, rows) <= width:
        return _aligned(columns, rows)
    notes, (*_, last) = [], columns
    if max((len(row[last]) for row in rows), default=0) > NOTE:
        texts = list(dict.fromkeys(row[last] for row in rows if len(row[last]) > NOTE))
        rows = [row | {last: f"[{texts.index(row[last]) + 1}]" if row[last] in texts else row[last]} for row in rows]
        notes = [fit(f"[{i}] {text}", 4, width) for i, text in enumerate(texts, 1)]
    if _width(columns, rows) > width and (key := _few_values(columns, rows)):
        rest = {other: heading for other, heading in columns.items() if other != key}
        values = dict.fromkeys(row[key] for row in rows)
        groups = {value: [row for row in rows if row[key] == value] for value in values}
        parts = [f"{columns[key]}: {value}\n{_wrapped(rest, group, width)}" for value, group in groups.items()]
        return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])
    return "\n".join([_wrapped(columns, rows, width), *([""] if notes else []), *notes])


def _few_values(columns, rows):
    """The column whose values would be the fewest headings, or None: at most three, and rows are together already."""

    def runs(key):
        return 1 + sum(a[key] != b[key] for a, b in itertools.pairwise(rows))

    inner = [key for key in list(columns)[1:-1] if columns[key] and runs(key) <= 3 and runs(key) < len(rows)]
    return min(inner, key=runs, default=None)


def _widths(columns, rows):
    return {key: max(map(len, [heading, *(row[key] for row in rows)])) for key, heading in columns.items()}


def _width(columns, rows):
    return sum(_widths(columns, rows).values()) + 2 * (len(columns) - 1)


def _wrapped(columns, rows, width):
    """The table with the cells of its widest column on several lines, if it has to be."""
    too_wide, widths = _width(columns, rows) - width, _widths(columns, rows)
    widest = max(widths, key=widths.get)
    if too_wide <= 0 or widths[widest] - too_wide < 10:
        return _aligned(columns, rows)
    lines = []
    for row in rows:
        cell, *more = textwrap.wrap(row[widest], widths[widest] - too_wide) or [""]
        lines += [row | {widest: cell}, *(dict.fromkeys(columns, "") | {widest: text} for text in more)]
    return _aligned(columns, lines)


def _aligned(columns, rows):
    widths = _widths(columns, rows)
    filled = {key: [row[key] for row in rows if row[key]] for key in columns}
    right = {key for key in columns if filled[key] and all(map(_number, filled[key]))}
    lines = []
    for line in ({**columns}, {key: "-" * widths[key] for key in columns}, *rows):
        cells = [line[key].rjust(widths[key]) if key in right else line[key].ljust(widths[key]) for key in columns]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _number(value):
    try:
        float(value.rstrip("x%"))
    except ValueError:
        return False
    return True
