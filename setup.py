"""The compiled part of the package; everything else is in pyproject.toml.

RESNET_FUSED_BUILD=auto (default): the CPU kernels, and those for the GPUs of this machine; says why where something cannot be
built, and never fails. =all: CUDA for every architecture too, with or without a GPU. =cpu: no CUDA part. =0: pure Python.
=1: as auto, but what was wanted and cannot be built is an error.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.append(str(Path(__file__).parent / "tools"))
import native_build

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        version = setuptools.__version__
        raise SystemExit(
            f"[resnet_fused] setuptools {version} needs wheel: pip install wheel, or no --no-build-isolation"
        ) from None

MODES = {"auto": "here", "all": "all", "cpu": None, "0": None, "1": "here"}  # what of CUDA is built
MODE = os.environ.get("RESNET_FUSED_BUILD", "auto")
if MODE not in MODES:
    raise SystemExit(f"[resnet_fused] RESNET_FUSED_BUILD must be auto, all, cpu, 0 or 1, not {MODE!r}")
LIBRARY, RECORD = "_native.so", "_native_build.json"


def say(text):
    print(f"[resnet_fused] {text}", flush=True)


class BuildNative(build_ext):
    """Puts _native.so and a record of how it came about, or why it did not, into the package.

    No Python extension module: the library is loaded by torch.ops.load_library and fits every Python.
    """

    def run(self):
        in_source = self.inplace or getattr(self, "editable_mode", False)
        package = native_build.ROOT / "resnet_fused" if in_source else Path(self.build_lib) / "resnet_fused"
        package.mkdir(parents=True, exist_ok=True)
        library, record = package / LIBRARY, package / RECORD
        try:
            if MODE == "0":
                raise native_build.CannotBuild("RESNET_FUSED_BUILD=0")
            built, info = native_build.build(MODES[MODE], say)
            if MODE == "1" and info.get("cuda_failed"):
                raise native_build.CannotBuild(info["without_cuda"])
        except native_build.CannotBuild as why:
            if MODE == "1":
                raise SystemExit(f"[resnet_fused] RESNET_FUSED_BUILD=1, but: {why}") from None
            say(f"no compiled library, a pure Python install: {why}")
            library.unlink(missing_ok=True)
            record.write_text(json.dumps({"not_built": str(why)}) + "\n")
            return
        # A new file, not new bytes in the old one: a process may have the old one mapped.
        shutil.copy2(built, library.with_suffix(".new"))
        library.with_suffix(".new").replace(library)
        record.write_text(json.dumps(info) + "\n")
        say(f"built {library}")

    def get_outputs(self):
        return [str(Path(self.build_lib) / "resnet_fused" / name) for name in (LIBRARY, RECORD)]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return []  # MANIFEST.in lists them


class Wheel(bdist_wheel):
    def get_tag(self):
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return "py3", "none", "any" if MODE == "0" else platform


setup(
    ext_modules=[Extension("resnet_fused._native", [])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    # Here and not in pyproject.toml, whose table changed its form with setuptools 77.
    license="Apache-2.0",
    license_files=["LICENSE", "third_party/torch/LICENSE-torch"],
)
