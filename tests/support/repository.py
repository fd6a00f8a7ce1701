"""The files of this repository."""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def path_of(test):
    """Where in tests/ the file `test` stands."""
    (path,) = (ROOT / "tests").rglob(test)
    return path


def tracked(*patterns):
    """Files of the repository, and those about to join it; in an unpacked source archive all but what was made there."""
    if not (ROOT / ".git").exists():
        return [ROOT / name for name in unpacked() if not patterns or any(fnmatch(name, p) for p in patterns)]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def unpacked():
    """The files that setup.py put into the archive."""
    (listing,) = ROOT.glob("*.egg-info/SOURCES.txt")
    return [name for name in listing.read_text().splitlines() if (ROOT / name).is_file()]
