"""Rows of text in aligned columns."""


def render(columns, rows):
    """`columns`: {key of a row: heading}; numbers are aligned to the right."""
    cells = [list(columns.values())] + [[str(row[key]) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [bool(rows) and all(_number(row[key]) for row in rows) for key in columns]
    lines = []
    for line in cells:
        columns_of_line = zip(line, widths, right, strict=True)
        lines.append(
            "  ".join(c.rjust(width) if to_right else c.ljust(width) for c, width, to_right in columns_of_line)
        )
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _number(value):
    try:
        float(str(value).rstrip("x%"))
    except ValueError:
        return False
    return True
