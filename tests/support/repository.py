"""The files of this repository."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def path_of(test):
    """Where in tests/ the file `test` stands."""
    (path,) = (ROOT / "tests").rglob(test)
    return path


def tracked(*patterns):
    """Files of the repository, and those about to join it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
