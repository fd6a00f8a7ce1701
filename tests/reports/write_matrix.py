"""Repeats every experiment of the matrix and writes docs/matrix.md."""

import matrix
import matrix_modules  # noqa: F401 (registers rows)
import matrix_networks
import matrix_tools  # noqa: F401 (registers rows)

if __name__ == "__main__":
    matrix.DOCUMENT.write_text(matrix.render(matrix.table(), matrix_networks.lines()))
    print(f"{len(matrix.ROWS)} rows in {matrix.DOCUMENT}")
