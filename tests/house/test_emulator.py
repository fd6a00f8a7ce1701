"""The emulator itself: right uses of every instruction give the right numbers, wrong uses are reported."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from emulator import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


def run(executable):
    done = subprocess.run([executable], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join([line for line in lines if not line.startswith("ok")] + [done.stderr])
    assert lines and all(line.startswith("ok") for line in lines)
    return [line[5:] for line in lines]


def test_every_instruction_has_a_right_use():
    checks = run(build.executable("micro"))
    listed = (build.ROOT / "csrc/ptx/ptx.cuh").read_text().split("#pragma once")[0]
    source = (build.ROOT / "tests/emulator/checks/micro.cpp").read_text()
    names = set(re.findall(r"\b([a-z_0-9]+)(?:<[^>]*>)?\(", listed))
    assert names >= {"ldmatrix_x4", "cp_async16", "bar_arrive", "shfl_down", "mma_m16n8k16", "to_tf32"}
    unused = {n for n in names if not re.search(rf"ptx::{n}\b", source)}
    assert not unused
    assert len(checks) >= 18


def test_wrong_uses_are_reported():
    assert len(run(build.executable("faults"))) >= 35


def test_hoppers_instructions():
    """Copies by tensor maps, mbarriers, asynchronous products: right under every schedule, and ten mistakes reported."""
    assert len(run(build.executable("hopper_checks"))) == 17


def test_hoppers_boxes_of_images():
    """Copies of four dimensions over every edge, products from any pixel of such a box, stmatrix; two mistakes reported."""
    assert len(run(build.executable("hopper_boxes"))) == 5


def test_multicast_copies():
    """Halves of a slot that each block of a cluster fills in both, released by both; ten mistakes reported."""
    assert len(run(build.executable("multicast_checks"))) == 11


def test_stores_by_tensor_maps():
    """Boxes over every edge of a matrix; six mistakes reported."""
    assert len(run(build.executable("store_checks"))) == 7


def test_clusters_and_early_launches():
    """Memory of other blocks, their barrier, a kernel that starts before the one ahead has ended; 16 mistakes reported."""
    assert len(run(build.executable("cluster_checks"))) == 21
    listed = (build.ROOT / "csrc/ptx/cluster.cuh").read_text().split("#pragma once")[0]
    source = (build.ROOT / "tests/emulator/checks/cluster_checks.cpp").read_text()
    names = set(re.findall(r"\b([a-z_0-9]+)(?:<[^>]*>)?\(", listed))
    assert len(names) == 9 and all(re.search(rf"ptx::{name}\b", source) for name in names)


@pytest.mark.slow("compiles the emulator once more, for other processors")
def test_fibers_without_assembly():
    """The ucontext fallback that other processors use."""
    run(build.executable("micro", extra=("-DEMU_UCONTEXT",)))


@pytest.mark.slow("the checks above, compiled again with the sanitizers")
@pytest.mark.parametrize(
    "name", ["micro", "faults", "hopper_checks", "hopper_boxes", "multicast_checks", "store_checks", "cluster_checks"]
)
def test_under_sanitizers(name):
    run(build.executable(name, sanitize=True))


def cutlass_includes():
    """-isystem flags for CuTe and the CUDA headers it includes, or why there are none."""
    cutlass = importlib.util.find_spec("cutlass_library")
    if cutlass is None:
        return "the package nvidia-cutlass (CuTe's headers) is not installed"
    nvcc = shutil.which("nvcc")
    toolkits = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for toolkit in [*toolkits, Path("/usr/local/cuda")]:
        if (toolkit / "include" / "cuda_runtime.h").exists():
            include = toolkit / "include"
            source = Path(cutlass.origin).parent / "source" / "include"
            return tuple(f"-isystem{path}" for path in (source, include / "cccl", include))
    return "no CUDA headers next to nvcc or in /usr/local/cuda"


def test_fragments_are_cutes():
    """Who holds which element, from NVIDIA's own description of the instructions."""
    if isinstance(includes := cutlass_includes(), str):
        pytest.skip(includes)
    assert len(run(build.executable("layouts", extra=includes))) == 7


def pointer(t):
    return ctypes.c_void_p(t.data_ptr())


def test_16_bit_formats_are_torchs():
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    f16, bf16 = torch.empty(65536), torch.empty(65536)
    build.control().emu_widen(pointer(patterns), pointer(f16), pointer(bf16), ctypes.c_int64(65536))
    for ours, dtype in ((f16, torch.float16), (bf16, torch.bfloat16)):
        theirs = patterns.view(dtype).float()
        assert ((ours.view(torch.int32) == theirs.view(torch.int32)) | (ours.isnan() & theirs.isnan())).all()
    # Every pattern, the midpoints between neighbours, and one float32 step to either side of both.
    x = torch.cat([f16, bf16, (f16 + f16.roll(-1)) / 2, (bf16 + bf16.roll(-1)) / 2, torch.randn(1 << 16) * 1e-6])
    bits = x.view(torch.int32)
    x = torch.cat([x, (bits + 1).view(torch.float32), (bits - 1).view(torch.float32)])
    n = x.numel()
    to_f16, to_bf16 = torch.empty(n, dtype=torch.float16), torch.empty(n, dtype=torch.bfloat16)
    to_tf32 = torch.empty(n)
    build.control().emu_narrow(pointer(x), pointer(to_f16), pointer(to_bf16), pointer(to_tf32), ctypes.c_int64(n))
    for ours, theirs in ((to_f16, x.half()), (to_bf16, x.bfloat16())):
        assert torch.equal(ours.isnan(), theirs.isnan())
        same = ours.view(torch.int16) == theirs.view(torch.int16)
        assert (same | theirs.isnan()).all()
    # TF32: 10 bits of mantissa, nearest, ties away from zero: at most half a step off, never toward zero at a tie.
    normal = (x.abs() > 2.0**-120) & (x.abs() < 2.0**120)
    step = torch.exp2(torch.floor(torch.log2(x[normal].abs().double())) - 10)
    off = to_tf32[normal].double() - x[normal].double()
    assert (off.abs() <= step / 2).all()
    assert ((off * x[normal].sign() > 0) | (off.abs() < step / 2)).all()
    assert (to_tf32[normal].view(torch.int32) & 0x1FFF == 0).all()
