"""Installs the package in many ways, each in a fresh environment, and writes what happened into docs/results/installing.md.

    python tools/installs.py [WAY ...] [--folder FOLDER] [--torch 2.13.0 ...] [--python PATH ...]

Without WAY every way is tried with the first --python and the first --torch; the wheel in dist/ (make wheel) also with the
others. FOLDER keeps an environment of each torch, of which every way gets a copy. CXX="ccache c++" makes it fast.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "installing.md"
ROWS = ROOT / "build" / "installs.json"
SETUPTOOLS = "84.2.1"
CHECK = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import resnet_fused
import torch
from resnet_fused.kernels import library
torch.manual_seed(0)
model, x = resnet_fused.resnet18().eval(), torch.randn(2, 3, 64, 64)
with torch.no_grad():
    y = model(x)
    with resnet_fused.backend("eager"):
        eager = model(x)
said = [str(w.message) for w in caught if str(w.message).startswith("resnet_fused")]
error = ((y - eager).norm() / eager.norm()).item()
absent = library.why_absent()
built = {} if absent else library.build_info()
cuda = f" with CUDA kernels for {', '.join(built['architectures'])}" if built.get("cuda") else ""
print(json.dumps({"absent": absent, "said": said, "equal": error < 1e-4, "cuda": cuda}))
"""


class Way:
    """What is done in a fresh environment. `pip(*arguments, **variables)` installs there."""

    def __init__(self, folder, python, torch):
        self.folder, self.output, self.variables, self.user = folder, "", {}, None
        self.version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        base = folder / f"base-{self.version}-{torch}"
        if not (base / "bin/python").exists():
            subprocess.run([python, "-m", "venv", base], check=True)
            self._run(base / "bin/python", "-m", "pip", "install", "-q", f"torch=={torch}", "numpy")
        self.environment = folder / "environment"
        shutil.rmtree(self.environment, ignore_errors=True)
        subprocess.run(["cp", "-al", base, self.environment], check=True)  # hard links: torch is large
        self.python = self.environment / "bin/python"

    def _run(self, *command, cwd="/", **variables):
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | variables
        command = [str(part) for part in command]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            user=self.user,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = done.stdout
        return done.returncode == 0

    def pip(self, *arguments, **variables):
        return self._run(self.python, "-m", "pip", "install", "--no-deps", *arguments, **variables)

    def source(self, name="source"):
        """A clone of this repository at its last commit, with nothing built."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", ROOT, place], check=True)
        return place

    def outcome(self, installed):
        """One line: what a user has in the end."""
        if not installed:
            lines = [line.strip() for line in self.output.splitlines()]
            return "refused: " + next((line for line in lines if line.startswith("[resnet_fused]")), lines[-1])
        if not self._run(self.python, "-c", CHECK, **self.variables):
            return "BROKEN: " + self.output.strip().splitlines()[-1]
        found = json.loads(self.output.strip().splitlines()[-1])
        if not (self.user or self._run(self.environment / "bin/resnet-fused", "--version")):
            return "BROKEN: resnet-fused --version"
        equal = "equal to eager" if found["equal"] else "NOT EQUAL to eager"
        if found["absent"] is None:
            return f"compiled library{found['cuda']}, {equal}" + "".join(
                f"; import says: {text}" for text in found["said"]
            )
        return f"no compiled library, {equal}; import says: {' '.join(found['said']) or 'nothing'}"


def folder(way):
    return way.pip(way.source())


def not_isolated(*packages, how=()):
    def install(way):
        way._run(way.python, "-m", "pip", "uninstall", "-q", "-y", "wheel")
        return way.pip("-q", *packages) and way.pip("--no-build-isolation", *how, way.source())

    return install


def archive(way):
    source, code = way.source(), "import setuptools.build_meta as b; b.build_sdist('made')"
    way.pip("-q", f"setuptools=={SETUPTOOLS}")
    way._run(way.python, "-c", code, cwd=source)
    return way.pip(*(source / "made").glob("*.tar.gz"))


def empty_path(way, **variables):
    """A PATH without a compiler."""
    (way.folder / "bin").mkdir(exist_ok=True)
    return way.pip(way.source(), **{"PATH": str(way.folder / "bin"), "CXX": "", **variables})


def failing_compiler(way):
    path = way.folder / "failing++"
    path.write_text(
        '#!/bin/sh\ncase "$*" in *-fsyntax-only*|--version) echo g++ 1.0;; *) echo "a.cpp:1: error: no"; exit 1;; esac\n'
    )
    path.chmod(0o755)
    return way.pip(way.source(), CXX=str(path))


def odd_variables(way):
    odd = {"CUDA_HOME": "/nowhere", "MAX_JOBS": "abc", "TORCH_CUDA_ARCH_LIST": "Kepler", "RESNET_FUSED_BUILD": "all"}
    return way.pip(way.source(), **odd)


def read_only(way):
    """Afterwards another user, who may write nowhere and has no home folder, imports the package."""
    installed = way.pip(way.source())
    subprocess.run(["chmod", "-R", "a-w", *way.environment.glob("lib/*/site-packages/resnet_fused")], check=True)
    way.variables = {"HOME": "/nonexistent"}
    system = shutil.which(f"/usr/bin/python{way.version.rpartition('.')[0]}")
    if os.getuid() == 0 and system:  # root may write everywhere
        way.python, way.user = Path(system), 65534
        way.variables["PYTHONPATH"] = str(next(way.environment.glob("lib/*/site-packages")))
    return installed


def by_uv(way):
    way.pip("-q", "uv")
    return way._run(way.environment / "bin/uv", "pip", "install", "--no-deps", "--python", way.python, way.source())


def by_build(way):
    source = way.source()
    way._run(way.python, "-m", "pip", "install", "-q", "build")
    return way._run(way.python, "-m", "build", "--wheel", cwd=source) and way.pip(*(source / "dist").glob("*.whl"))


def cuda_wheel(way):
    """For one architecture: all of them take nvcc 5 minutes."""
    source, variables = way.source(), {"RESNET_FUSED_BUILD": "all", "TORCH_CUDA_ARCH_LIST": "9.0"}
    made = way._run(sys.executable, "tools/make_wheel.py", cwd=source, **variables)
    return made and way.pip(*(source / "dist").glob("*.whl"))


def wheel(way):
    return way.pip(*(ROOT / "dist").glob("*.whl"))


WAYS = {
    "folder": ("`pip install .`", folder),
    "not-isolated": (f"`--no-build-isolation`, setuptools {SETUPTOOLS}", not_isolated(f"setuptools=={SETUPTOOLS}")),
    "setuptools-65": ("`--no-build-isolation`, setuptools 65.5, wheel", not_isolated("setuptools==65.5.0", "wheel")),
    "no-wheel": ("`--no-build-isolation`, setuptools 65.5, no wheel", not_isolated("setuptools==65.5.0")),
    "editable": ("`pip install -e .`", lambda w: w.pip("-e", w.source())),
    "editable-not-isolated": ("`pip install -e . --no-build-isolation`", not_isolated(f"setuptools=={SETUPTOOLS}", how=["-e"])),
    "git": ("`pip install git+file://...`", lambda w: w.pip(f"git+file://{w.source()}")),
    "archive": ("from the source archive", archive),
    "blanks": ("a folder with blanks and accents", lambda w: w.pip(w.source("déjà vu"))),
    "uv": ("`uv pip install .`", by_uv),
    "build": ("`python -m build`, then its wheel", by_build),
    "ccache": ("`CXX=\"ccache g++\"`", lambda w: w.pip(w.source(), CXX="ccache g++")),
    "cuda-wheel": ("`RESNET_FUSED_BUILD=all TORCH_CUDA_ARCH_LIST=9.0 make wheel`", cuda_wheel),
    "odd-variables": ("`CUDA_HOME=/nowhere MAX_JOBS=abc TORCH_CUDA_ARCH_LIST=Kepler RESNET_FUSED_BUILD=all`", odd_variables),
    "no-compiler": ("no compiler", empty_path),
    "failing-compiler": ("a compiler that fails", failing_compiler),
    "not-wanted": ("`RESNET_FUSED_BUILD=0`", lambda w: w.pip(w.source(), RESNET_FUSED_BUILD="0")),
    "must": ("`RESNET_FUSED_BUILD=1` and no compiler", lambda w: empty_path(w, RESNET_FUSED_BUILD="1")),
    "read-only": ("nothing can be written afterwards, no home folder", read_only),
}  # fmt: skip


def write(rows):
    lines = [
        "# Ways to install, tried", "",
        "`python tools/installs.py` made this page. Each way began in a fresh environment that had torch alone. Then a",
        "ResNet-18 was compared with eager torch, outside of the source tree.", "",
        "| way | Python, torch | outcome |", "|---|---|---|",
    ]  # fmt: skip
    order = [*WAYS, "wheel"]
    rows = dict(sorted(rows.items(), key=lambda item: order.index(item[0].split()[0])))
    lines += [f"| {row['way']} | {row['python']}, {row['torch']} | {row['outcome']} |" for row in rows.values()]
    date = datetime.date.today()
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
    cached = " ccache kept objects between the ways." if "ccache" in os.environ.get("CXX", "") else ""
    lines += ["", f"Last tried {date} on {platform.machine()}, with {(compiler or ['no compiler'])[0]}.{cached}"]
    PAGE.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"default: all of {', '.join([*WAYS, 'wheel'])}")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "installs", help="default: build/installs")
    parser.add_argument("--torch", nargs="+", default=["2.13.0"], help="versions; default: 2.13.0")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="default: this one")
    args = parser.parse_args()
    if unknown := set(args.ways) - set(WAYS) - {"wheel"}:
        parser.error(f"WAY must be one of {', '.join([*WAYS, 'wheel'])}, not {sorted(unknown)[0]}")
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = args.ways or [*WAYS, "wheel"]
    todo = [(name, *WAYS[name], args.python[0], args.torch[0]) for name in asked if name != "wheel"]
    if "wheel" in asked:
        pairs = [(args.python[0], torch) for torch in args.torch] + [(p, args.torch[0]) for p in args.python[1:]]
        todo += [("wheel", "the wheel of `make wheel`", wheel, python, torch) for python, torch in pairs]
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for name, title, function, python, torch in todo:
        way = Way(args.folder.resolve(), python, torch)
        outcome = way.outcome(function(way)).replace(str(args.folder.resolve()), "FOLDER").replace("|", "/")
        rows[f"{name} {way.version} {torch}"] = {
            "way": title,
            "python": way.version,
            "torch": torch,
            "outcome": outcome,
        }
        print(f"{title} (Python {way.version}, torch {torch}): {outcome}", flush=True)
        ROWS.parent.mkdir(exist_ok=True)
        ROWS.write_text(json.dumps(rows, indent=1))
    write(rows)


if __name__ == "__main__":
    main()
