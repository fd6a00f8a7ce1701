"""The second stage: kernels, emulator and the compiled library under AddressSanitizer and UBSan, which see accesses past a
tensor.

A Python with libasan preloaded takes torch's CPU allocations from it, each between red zones.
"""

import os
import subprocess
import sys

import pytest
from emulator import build
from repository import path_of

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.exhaustive("compiles everything again, with the sanitizers, and runs five times slower"),
]
TESTS = build.ROOT / "tests"
PATHS = [build.ROOT, TESTS, TESTS / "support"]


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**build.sanitizer_env(), "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=1200,
    )


OVERFLOW = """
import ctypes, torch
from emulator import build
x, f16, bf16 = torch.zeros(64, dtype=torch.int16), torch.zeros(64), torch.zeros(64)
pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, f16, bf16)]
build.control().emu_widen(*pointers, ctypes.c_int64(64))
print("in bounds", flush=True)
build.control().emu_widen(*pointers, ctypes.c_int64(65))
"""


def test_an_access_past_a_tensor_is_seen():
    done = python("-c", OVERFLOW)
    assert "in bounds" in done.stdout, done.stderr
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr and "emu_widen" in done.stderr


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_cuda_emulated.py", "half-vectors or odd-channels or askew or any_size"),
        ("test_conv_emulated.py", "f16 and not bf16"),
        ("test_conv_stats_emulated.py", "f16 and not bf16"),
        ("test_conv_pool_emulated.py", "f16 and not bf16"),
        ("test_conv_pair_emulated.py", "f16 and not bf16"),
        ("test_plane_emulated.py", "test_values and f16 and not bf16"),
        ("test_strip_emulated.py", "f16 and not bf16"),
    ],
)
def test_kernels(file, chosen):
    # --capture=sys: a report is written to file descriptor 2 before the process is aborted.
    done = python("-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-k", chosen, path_of(file))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


# The maps of ResNet's layers and all Winograd ways of a network add minutes and no way through the code.
@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_amx.py", "not resnet and not groups and not rows-in and not two_calls"),
        ("test_amx_special_values.py", "nan-f or nan-b or subnormal or nobody"),
        ("test_amx_stem.py", ""),
        ("test_frozen_whole.py", "(numbers_of_eager and (one-pixel or zero-padded)) or poisoned or in_pieces"),
        ("test_frozen_whole_refused.py", ""),
        ("test_stem.py", "not 224"),
        ("test_direct.py", "not groups and not rows-in"),
        ("test_winograd.py", "(against_float64 or same_bits) and not 512 and not 256 and not 128"),
        ("test_winograd_training.py", "(against_float64 or layout) and not 256 and not 128"),
        ("test_winograd_bf16.py", "not 512 and not 256"),
    ],
)  # fmt: skip
def test_cpu_kernels(file, chosen):
    done = python(
        *("-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-p", "sanitized_native"),
        *("-k", chosen, path_of(file)),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
