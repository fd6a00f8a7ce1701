"""One wheel for every Python and every torch from 2.11 on, in dist/: make wheel (RESNET_FUSED_BUILD=all: with CUDA kernels)

The CPU kernels for every instruction set are in it; the CPU chooses when the package is loaded. auditwheel checks that the
library needs nothing newer than the systems of POLICY have, and gives the wheel its name.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICY = "manylinux_2_34"  # Debian 12, Ubuntu 22.04, RHEL 9 and later; what g++ 11 and 12 link against
TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so")  # torch has loaded them by then
TOOLS = ("auditwheel", "patchelf")


def run(*command, **variables):
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env={**os.environ, **variables})


def build(folder, mode):
    """The wheel that pip builds, with the record of its library."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, RESNET_FUSED_BUILD=mode)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        record = json.loads(archive.read("resnet_fused/_native_build.json"))
    if why := record.get("not_built") or (mode == "all" and record.get("without_cuda")):
        raise SystemExit(f"make_wheel.py: no wheel, because the library could not be built: {why}")
    return wheel, record


def main():
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder) / "tools"
        run(sys.executable, "-m", "venv", tools)
        run(tools / "bin/pip", "install", "-q", "-c", "constraints.txt", *TOOLS)
        wheel, record = build(Path(folder), os.environ.get("RESNET_FUSED_BUILD", "cpu"))
        policy = f"{POLICY}_{platform.machine()}"
        path = f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"
        excluded = [word for name in TORCH for word in ("--exclude", name)]
        run(tools / "bin/auditwheel", "repair", "--plat", policy, *excluded, "-w", "dist", wheel, PATH=path)
    (made,) = (ROOT / "dist").glob(f"resnet_fused-{record['version']}-py3-none-*.whl")
    cuda = (
        ", ".join(record["architectures"]) if record["cuda"] else "no CUDA kernels (RESNET_FUSED_BUILD=all adds them)"
    )
    print(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB; {record['compiler']}; {cuda}")


if __name__ == "__main__":
    main()
