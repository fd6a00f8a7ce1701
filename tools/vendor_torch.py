"""Copies the headers of torch's stable ABI that csrc/ includes: python tools/vendor_torch.py FOLDER_OF_TORCH

FOLDER_OF_TORCH is an installed torch of the version that tools/native_build.py calls TORCH_TARGET. With the copies the
library is built where no torch is, as in pip's build isolation, and the same way everywhere.
"""

import re
import shutil
import sys
from pathlib import Path

import native_build

VENDORED = native_build.TORCH_HEADERS
INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"](torch/[\w/.]+)[>\"]", re.M)


def wanted(include):
    """Every header of torch below `include` that a source of csrc/ includes, also through others, as relative paths."""
    sources = [p for p in native_build.CSRC.rglob("*") if p.suffix in (".cpp", ".h", ".cu", ".cuh")]
    queue = {name for source in sources for name in INCLUDE.findall(source.read_text())}
    found = set()
    while queue:
        name = queue.pop()
        if name not in found and (include / name).is_file():
            found.add(name)
            queue |= set(INCLUDE.findall((include / name).read_text()))
    return sorted(found)


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: vendor_torch.py FOLDER_OF_TORCH")
    torch = Path(sys.argv[1])
    version = re.search(r"__version__ = '([^'+]+)", (torch / "version.py").read_text()).group(1)
    if not version.startswith(f"{native_build.TORCH_TARGET}."):
        raise SystemExit(f"FOLDER_OF_TORCH must be of torch {native_build.TORCH_TARGET}, but is of torch {version}")
    shutil.rmtree(VENDORED, ignore_errors=True)
    for name in wanted(torch / "include"):
        (VENDORED / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(torch / "include" / name, VENDORED / name)
    (license_file,) = torch.parent.glob(f"torch-{version}*.dist-info/licenses/LICENSE")
    # torch's own licence; those of the libraries that its wheel bundles follow it.
    own = license_file.read_text().split("The PyTorch repository and source distributions bundle")[0]
    (VENDORED.parent / "LICENSE-torch").write_text(own.rstrip() + "\n")
    print(f"{len(wanted(VENDORED))} headers of torch {version} in {VENDORED}")


if __name__ == "__main__":
    main()
