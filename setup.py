"""The compiled part of the package; everything else is in pyproject.toml.

RESNET_FUSED_BUILD=auto (default): builds what this machine can build and says why where it cannot; never fails.
RESNET_FUSED_BUILD=cpu: the same without the CUDA part, whose compilation takes most of the time.
RESNET_FUSED_BUILD=0: pure Python. RESNET_FUSED_BUILD=1: a library that cannot be built is an error.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "tools"))
import native_build

MODE = os.environ.get("RESNET_FUSED_BUILD", "auto")
if MODE not in ("auto", "cpu", "0", "1"):
    raise SystemExit(f"RESNET_FUSED_BUILD must be auto, cpu, 0 or 1, not {MODE!r}")
LIBRARY, RECORD = "_native.so", "_native_build.json"


def say(text):
    print(f"[resnet_fused] {text}", flush=True)


class BuildNative(build_ext):
    """Puts _native.so and a record of how it came about, or why it did not, into the package.

    No Python extension module: the library is loaded by torch.ops.load_library and fits every Python.
    """

    def run(self):
        in_source = self.inplace or self.editable_mode
        package = native_build.ROOT / "resnet_fused" if in_source else Path(self.build_lib) / "resnet_fused"
        package.mkdir(parents=True, exist_ok=True)
        library, record = package / LIBRARY, package / RECORD
        try:
            if MODE == "0":
                raise native_build.CannotBuild("RESNET_FUSED_BUILD=0")
            built, info = native_build.build(MODE != "cpu", say)
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
)
