"""Makes the environment that `make` works in and prints its Python: python tools/environment.py demo | test

An activated environment that has torch is used as it is: what is missing is added, nothing else changes. Otherwise
.venv, with the versions of constraints.txt. Then the compiled library is built in place. A stamp makes the next call a
matter of milliseconds, until something that the result depends on changes.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = ROOT / "build" / "environment"
# goal: {module to import: distribution}
BUILD = {"setuptools": "setuptools"}
DEMO = {**BUILD, "numpy": "numpy", "PIL": "pillow", "matplotlib": "matplotlib", "safetensors": "safetensors"}
TEST = {**DEMO, "pytest": "pytest", "xdist": "pytest-xdist", "hypothesis": "hypothesis", "yaml": "pyyaml",
        "huggingface_hub": "huggingface_hub", "sklearn": "scikit-learn"}  # fmt: skip
LINT = {"ruff": "ruff", "clang_format": "clang-format", "mypy": "mypy"}
GOALS = {"demo": DEMO, "test": TEST, "lint": LINT}
TRITON = "triton==3.9.0"  # for a torch that brings none
# Peers of the tests. Without their dependencies: they ask for a torch of their own choice.
WITHOUT_DEPENDENCIES = {"torchvision": "torchvision", "timm": "timm"}


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command):
    subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr, cwd=ROOT)


def activated():
    """The Python of an activated virtualenv or conda environment that has torch, or None."""
    if not (os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")):
        return None
    test = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    try:
        found = subprocess.run(["python", "-c", test], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return None
    # The environment of this project, activated by hand, keeps its pinned versions.
    return "python" if found and Path(os.environ.get("VIRTUAL_ENV", "/")).resolve() != VENV else None


def own():
    python = VENV / "bin" / "python"
    if not python.exists():
        say("making .venv")
        try:
            run(sys.executable, "-m", "venv", VENV)
        except subprocess.CalledProcessError:
            why = f"{sys.executable} cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
            raise SystemExit(why) from None
    return python


def missing(python, packages):
    """Those of `packages` {module: distribution} that `python` cannot import."""
    code = (
        "import importlib.util as u, json, sys; print(json.dumps([m for m in sys.argv[1:] if u.find_spec(m) is None]))"
    )
    answer = subprocess.run([str(python), "-c", code, *packages], check=True, stdout=subprocess.PIPE, cwd="/").stdout
    return [packages[module] for module in json.loads(answer)]


def pinned(distributions):
    """With the versions of constraints.txt, where it knows them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-"): line for line in lines if "==" in line}
    return [pins.get(d.lower().replace("_", "-"), d) for d in distributions]


def digest(python, goal):
    """Of all that the environment and the compiled library are made from."""
    parts = [ROOT / name for name in ("constraints.txt", "pyproject.toml", "setup.py", "MANIFEST.in")]
    parts += [Path(__file__), ROOT / "tools" / "native_build.py", ROOT / "tools" / "native_machine.py"]
    parts += sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file()) if goal != "lint" else []
    asked = [os.environ.get(name) for name in ("RESNET_FUSED_BUILD", "CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST")]
    state = hashlib.sha256(f"{python} {asked} {sys.version}".encode())
    for part in parts:
        state.update(part.relative_to(ROOT).as_posix().encode() + part.read_bytes())
    return state.hexdigest()


def install(python, goal, is_own):
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = GOALS[goal]
    if is_own:
        say(f"installing torch, {', '.join(packages.values())} into .venv (the first time this takes minutes)")
        # pip would compile all modules of torch to bytecode, which takes 15 s; Python compiles those that it imports.
        run(*pip, "--no-compile", "-c", "constraints.txt", "torch", *packages.values())
    elif missing(python, packages):
        lacking = missing(python, packages)
        say(f"adding {', '.join(lacking)} to the activated environment")
        run(*pip, *pinned(lacking))
    if goal == "test":
        if missing(python, {"triton": "triton"}):
            run(*pip, "--no-deps", TRITON)
        if missing(python, WITHOUT_DEPENDENCIES):
            run(*pip, "--no-deps", *pinned(missing(python, WITHOUT_DEPENDENCIES)))
    if goal != "lint":
        say("building the compiled library (RESNET_FUSED_BUILD=0 leaves it out)")
        run(python, "setup.py", "--quiet", "build_ext", "--inplace")
    if goal == "test":
        say("building the emulator of the tests, which runs the CUDA kernels on a CPU")
        run(python, "tests/emulator/build.py")


def main():
    goal = sys.argv[1] if len(sys.argv) == 2 else ""
    if goal not in GOALS:
        raise SystemExit(f"usage: environment.py {' | '.join(GOALS)}")
    if sys.version_info < (3, 10):  # noqa: UP036 (this runs before anything is installed)
        raise SystemExit(
            f"Python 3.10 or later is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..."
        )
    active = activated()
    python = active or own()
    stamp, state = STAMPS / f"{'activated' if active else 'own'}-{goal}", digest(python, goal)
    if not stamp.exists() or stamp.read_text() != state:
        install(python, goal, not active)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(state)
    print(python)


if __name__ == "__main__":
    main()
