"""Builds the libraries that most tests of CUDA kernels load, with all cores, before processes share the tests: make test."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
from emulator import build  # noqa: E402

APIS = {"conv_api": "conv/**/*.cu", "plane_api": "hopper/plane/*.cu", "strip_api": "hopper/strip/*.cu"}

if __name__ == "__main__" and build.why_not() is None:
    from emulator import pretended  # noqa: F401 (its import builds its library, and has to come before that of torch)

    build.library()
    for name, kernels in APIS.items():
        build.c_library(name, kernels)
