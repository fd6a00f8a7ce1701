"""Ahead-of-time compilation of every kernel: no spills, stack frames or warnings, tensor cores where they belong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import aot_cuda  # noqa: E402

COMPILES = pytest.mark.slow("compiles kernels for a GPU, which change only with their sources")
needs_nvcc = pytest.mark.skipif(aot_cuda.why_not() is not None, reason=str(aot_cuda.why_not()))


@needs_nvcc
@pytest.mark.exhaustive("nvcc compiles every kernel again, once for each architecture")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_cuda_kernels(arch):
    """From the cache unless a source changed (cold, three architectures: 1 minute on 2 cores, measured 2026-11-24)."""
    rows = aot_cuda.rows([arch])
    assert {row["case"] for row in rows} >= {
        f"norms/{op}.cu" for op in ("add_relu", "bn_relu", "bn_stats", "bn_relu_backward")
    }
    assert sum(bool(row["tensor_core"]) for row in rows) >= 12
    wrong = [f"{row['kernel']} {row['arch']}: {fault}" for row in rows for fault in aot_cuda.faults(row)]
    assert not wrong, "\n".join(wrong)


def kernel(tmp_path, monkeypatch, text):
    source = tmp_path / "csrc" / "cuda" / "example.cu"
    source.parent.mkdir(parents=True)
    source.write_text(text)
    monkeypatch.setattr(aot_cuda, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(aot_cuda, "CACHE", tmp_path / "cache")
    return aot_cuda.rows([80])


SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills(float* p) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i * 1024 + threadIdx.x] = v[63 - i] * v[i];
}
"""


@needs_nvcc
def test_a_spill_is_seen(tmp_path, monkeypatch):
    (row,) = kernel(tmp_path, monkeypatch, SPILLS)
    assert row["registers"] <= 32 and any("spilled" in fault for fault in aot_cuda.faults(row))


@needs_nvcc
def test_a_missing_tensor_core_instruction_is_seen(tmp_path, monkeypatch):
    text = "struct MathF16 {}; template <class M> __global__ void conv_kernel(float* p) { p[0] *= 2; }\n"
    (row,) = kernel(tmp_path, monkeypatch, text + "template __global__ void conv_kernel<MathF16>(float*);\n")
    assert list(aot_cuda.faults(row)) == ["no tensor-core instruction"]


@needs_nvcc
def test_sources_for_hopper_are_compiled_for_hopper_only(tmp_path, monkeypatch):
    """And what they must hold: products fed by the copy engine."""
    source = tmp_path / "csrc" / "cuda" / "example_sm90a.cu"
    source.parent.mkdir(parents=True)
    wgmma = 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory");'
    source.write_text(
        f"__global__ void conv_kernel(float* p) {{ {wgmma} p[0] *= 2; }}\n"
        "__global__ void conv_reduce_kernel(float* p) { p[0] *= 2; }\n"
    )
    monkeypatch.setattr(aot_cuda, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(aot_cuda, "CACHE", tmp_path / "cache")
    assert aot_cuda.rows([80, 100]) == []
    found = {row["kernel"]: list(aot_cuda.faults(row)) for row in aot_cuda.rows([80, 90])}
    assert found == {"conv_kernel": ["no HGMMA", "no UTMALDG"], "conv_reduce_kernel": []}


@needs_nvcc
def test_sources_for_clusters_are_compiled_for_those_who_have_them(tmp_path, monkeypatch):
    """And what they must hold: each instruction that a kernel lacks is named."""
    source = tmp_path / "csrc" / "cuda" / "example_sm90.cu"
    source.parent.mkdir(parents=True)
    barrier = 'asm volatile("barrier.cluster.arrive.aligned;\\nbarrier.cluster.wait.aligned;" ::: "memory");'
    source.write_text(f"__global__ void k(float* p) {{ {barrier} p[0] *= 2; }}\n")
    monkeypatch.setattr(aot_cuda, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(aot_cuda, "CACHE", tmp_path / "cache")
    assert aot_cuda.rows([80, 89]) == []
    for row in aot_cuda.rows([90, 100]):
        assert list(aot_cuda.faults(row)) == ["no ACQBULK", "no CCTL.E.PF2", "no LD.E.128", "no PREEXIT"]


@COMPILES
@needs_nvcc
@pytest.mark.parametrize("arch", [90, pytest.param(100, marks=pytest.mark.exhaustive("as for 90, in another binary"))])
def test_the_cluster_convolution_waits_before_it_reads(arch):
    """It stores, triggers and reads its neighbours' memory after the wait, in the order of its code."""
    rows = [row for row in aot_cuda.rows([arch], "conv/instances/cluster") if "conv_cluster_kernel" in row["kernel"]]
    assert len(rows) == 11 and not any(fault for row in rows for fault in aot_cuda.faults(row))
    assert sum(bool(row["tensor_core"]) for row in rows) == 9


def test_faults_of_a_kernel_for_hopper():
    row = {
        "case": "conv_sm90a.cu", "kernel": "conv_kernel<MathF16>", "warnings": [], "spills": 0, "stack": 0, "local": 0,
        "shared": 0, "tensor_core": "HGMMA.64x128x16.F32", "hopper": ["HGMMA", "UTMALDG"], "early": [],
    }  # fmt: skip
    assert not list(aot_cuda.faults(row))
    assert list(aot_cuda.faults(row | {"shared": 232449})) == ["232449 bytes of shared memory, more than 232448"]
    assert list(aot_cuda.faults(row | {"early": aot_cuda.before_the_wait("STG.E R0 ; ACQBULK ; PREEXIT ;")})) == [
        "STG before ACQBULK"
    ]
    pair = row | {"kernel": "conv_plane_kernel<bf16, 1, 2>"}
    assert list(aot_cuda.faults(pair)) == [
        "no UCGABAR_ARV", "no UCGABAR_WAIT", "no USETMAXREG", "no UTMALDG.2D.MULTICAST", "no UTMASTG",
    ]  # fmt: skip
    plane = row | {"kernel": "conv_plane_kernel<bf16, 2, 1>", "hopper": [*row["hopper"], "UTMASTG", "USETMAXREG"]}
    assert list(aot_cuda.faults(plane | {"registers": 168})) == []
    assert list(aot_cuda.faults(plane | {"registers": 160})) == [
        "160 registers, not 168: its exchange of registers would wait for ever"
    ]
    assert list(aot_cuda.faults(row | {"local": 3})) == ["3 accesses of local memory"]
    assert list(aot_cuda.faults(row | {"warnings": ["C7510: serialized"]})) == ["C7510: serialized"]


@needs_nvcc
def test_what_launches_ask_of_the_runtime(tmp_path):
    """Shared memory, tensor maps and exchanged registers, with a runtime and a driver that the test program plays."""
    root, program = TOOLS.parent, tmp_path / "checks"
    source = root / "tests/emulator/checks/runtime_checks.cpp"
    command = ["nvcc", "-x", "cu", "-std=c++17", "-cudart", "none", "-Werror", "all-warnings", f"-I{root / 'csrc'}"]
    built = subprocess.run([*command, source, "-o", program], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ok\n")


@needs_nvcc
def test_a_warning_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(aot_cuda.CannotCompile, match="unused"):
        kernel(tmp_path, monkeypatch, "__global__ void k(float* p) { int unused; p[0] = 1; }\n")


@needs_nvcc
def test_the_cache_follows_included_files(tmp_path, monkeypatch):
    header = tmp_path / "csrc" / "cuda" / "factor.h"
    source = '#include "factor.h"\n__global__ void k(float* p) { p[0] *= FACTOR; }\n'
    header.parent.mkdir(parents=True)
    header.write_text("#define FACTOR 2\n")
    monkeypatch.setattr(aot_cuda, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(aot_cuda, "CACHE", tmp_path / "cache")
    (header.parent / "example.cu").write_text(source)
    assert not aot_cuda.rows([80])[0]["tensor_core"]
    compiled = []
    monkeypatch.setattr(aot_cuda, "read", lambda *arguments: compiled.append(arguments) or [])
    aot_cuda.rows([80])
    assert not compiled
    header.write_text("#define FACTOR 3\n")
    aot_cuda.rows([80])
    assert compiled


def test_the_joint_command():
    done = subprocess.run([sys.executable, TOOLS / "aot.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--arch" in done.stdout


@COMPILES
@pytest.mark.parametrize(
    ("arch", "case"), [(90, "conv_fp8 layer2"), (90, "conv_fp8 layer1 first"), (89, "conv_fp8 layer2")]
)
def test_the_e4m3_convolution(arch, case):
    """QGMMA on Hopper, QMMA on Ada, sums promoted by additions in float32, no spill."""
    compiled_without_faults(arch, case, "e4m3", {"_conv_kernel"})


@COMPILES
@pytest.mark.parametrize(
    ("arch", "dtype", "case"),
    [(80, "tf32", "conv_stats stem"), (100, "fp32", "conv_stats ragged"), (100, "fp16", "conv_stats layer4, batch 1")],
)
def test_convolutions_with_statistics_do_not_spill(arch, dtype, case):
    """The epilogue with batch statistics takes the most registers; these three spilled when the kernel took strides."""
    compiled_without_faults(arch, case, dtype, {"_conv_kernel"})


@COMPILES
def test_sums_that_are_not_promoted_are_seen():
    """With tl.dot's accumulator in place of the addition there is none left (Triton 3.9)."""
    pytest.importorskip("triton")
    code = "import sys; sys.path.insert(0, 'tools'); import aot_fp8\n"
    for cores, products, additions, fault in (
        ("QGMMA.64x128x32", 4, 64, "[]"),
        ("QGMMA.64x128x32", 4, 0, "['0 additions in float32, fewer than 64: sums are not promoted']"),
        ("HMMA.16816", 64, 64, "['no QGMMA']"),
    ):
        row = {"kernel": "_conv_kernel", "arch": "sm_90", "tensor_core": cores, "promotions": (products, additions)}
        code += f"assert str(list(aot_fp8.faults({row!r}))) == {fault!r}\n"
    run_without_interpreter(code)


def compiled_without_faults(arch, case, dtype, kernels):
    code = (
        "import sys; sys.path.insert(0, 'tools'); import aot_triton as aot\n"
        f"index = [i for i, (case, _) in enumerate(aot.cases({dtype!r})) if case == {case!r}]\n"
        f"rows = aot.compile_case({arch}, {dtype!r}, index[0])\n"
        f"assert rows and {{row['kernel'] for row in rows}} & {kernels!r}, rows\n"
        "print(rows, [fault for row in rows for fault in aot.faults(row)])"
    )
    pytest.importorskip("triton")
    assert run_without_interpreter(code).endswith(" []")


def run_without_interpreter(code):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOOLS.parent, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
