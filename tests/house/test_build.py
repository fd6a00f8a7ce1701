"""The decisions of setup.py: what is built, what is not and why, what an install leaves behind. Compiles nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "setup.py").exists():
    pytest.skip("not a source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))
import native_build  # noqa: E402


@pytest.fixture
def tree(tmp_path):
    """A copy of the project without anything built."""
    for name in ("csrc", "tools", "resnet_fused"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("_native*.so", "_native_build.json", "__pycache__"),
        )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    return tmp_path


def install(tree, mode):
    """`setup.py build_ext --inplace` where no compiler can be found."""
    (tree / "bin").mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": str(tree / "bin"), "RESNET_FUSED_BUILD": mode}
    environment.pop("CXX", None)
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_the_install_is_pure_python_and_says_so(tree):
    (tree / "resnet_fused/_native.so").write_bytes(b"left over from another machine")
    run = install(tree, "auto")
    assert run.returncode == 0, run.stderr
    assert "no compiled library, a pure Python install: no C++ compiler found" in run.stdout
    assert not (tree / "resnet_fused/_native.so").exists()
    assert "no C++ compiler found" in json.loads((tree / "resnet_fused/_native_build.json").read_text())["not_built"]


def test_a_failing_compiler_is_no_install_error(tree):
    (tree / "bin").mkdir()
    shutil.copy(native_build.find_ninja(), tree / "bin/ninja")
    compiler = tree / "bin/c++"
    compiler.write_text(f'#!{shutil.which("sh")}\n[ "$1" = --version ] && echo broken 1.0 && exit 0\nexit 1\n')
    compiler.chmod(0o755)
    run = install(tree, "cpu")
    assert run.returncode == 0 and "broken 1.0" in run.stdout and "the compiler failed" in run.stdout
    assert "the compiler failed" in json.loads((tree / "resnet_fused/_native_build.json").read_text())["not_built"]


def test_what_must_be_built_and_cannot_is_an_error(tree):
    run = install(tree, "1")
    assert run.returncode != 0 and "RESNET_FUSED_BUILD=1, but: no C++ compiler found" in run.stderr


def test_build_0_compiles_nothing(tree):
    run = install(tree, "0")
    assert run.returncode == 0 and "no compiled library" in run.stdout and "compiler" not in run.stdout
    record = json.loads((tree / "resnet_fused/_native_build.json").read_text())
    assert record == {"not_built": "RESNET_FUSED_BUILD=0"} and not (tree / "resnet_fused/_native.so").exists()


def test_an_unknown_mode_is_refused(tree):
    run = install(tree, "yes")
    assert run.returncode != 0 and "must be auto, cpu, 0 or 1, not 'yes'" in run.stderr


@pytest.fixture
def nvcc(monkeypatch):
    listing = "".join(f"compute_{n}\n" for n in (75, 80, 86, 87, 89, 90, 100, 120))
    monkeypatch.setattr(native_build, "output_of", lambda *command: listing)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return "nvcc"


def test_default_architectures_end_in_ptx_for_later_devices(nvcc):
    flags, names = native_build.architectures(nvcc)
    assert names == ["8.0", "8.6", "8.9", "9.0a", "10.0a", "PTX 100"]
    assert "-gencode=arch=compute_90a,code=sm_90a" in flags and flags.endswith("arch=compute_100,code=compute_100")


def test_an_older_nvcc_builds_what_it_knows(nvcc, monkeypatch):
    monkeypatch.setattr(native_build, "output_of", lambda *command: "compute_80\ncompute_86\ncompute_89\ncompute_90\n")
    flags, names = native_build.architectures(nvcc)
    assert names == ["8.0", "8.6", "8.9", "9.0a", "PTX 90"] and "100" not in flags


def test_architecture_list_is_respected(nvcc, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6;9.0+PTX")
    flags, names = native_build.architectures(nvcc)
    assert names == ["8.6", "9.0+PTX"]
    assert flags.split() == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(native_build.CannotBuild, match="Hopper"):
        native_build.architectures(nvcc)


def test_sources_for_hopper_and_for_clusters(tmp_path, monkeypatch):
    """Hopper's for sm_90a alone, whatever is asked for: nothing else has their instructions, and PTX of compute_90 has none
    either. Those with clusters by a rule of their own."""
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    monkeypatch.setattr(native_build, "CSRC", tmp_path / "csrc")
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    for name in ("plain.cu", "strip_sm90a.cu", "cluster_sm90.cu"):
        (tmp_path / "csrc" / "cuda" / name).touch()
    file = native_build.NinjaFile(Path("build"))
    hopper = native_build.gencode([native_build.HOPPER])
    asked = ["8.0", "9.0+PTX"]
    flags = native_build.gencode(asked), native_build.with_clusters(asked), hopper
    native_build._add_rules(file, tmp_path, "g++", "nvcc", *flags)
    native_build._add_sources(file, "nvcc", False)
    assert "build build/cuda/plain.cu.o: nvcc csrc/cuda/plain.cu" in file.lines
    assert "build build/cuda/strip_sm90a.cu.o: nvcc_sm90a csrc/cuda/strip_sm90a.cu" in file.lines
    assert "build build/cuda/cluster_sm90.cu.o: nvcc_sm90 csrc/cuda/cluster_sm90.cu" in file.lines
    for rule, wanted in (
        ("nvcc_sm90a", native_build.gencode(["9.0a"])),
        ("nvcc_sm90", native_build.gencode(["9.0+PTX"])),
    ):
        command = file.lines[file.lines.index(f"rule {rule}") + 1]
        assert [word for word in command.split() if "gencode" in word] == wanted.split()


def test_place_and_name_say_what_a_source_is_compiled_for(tmp_path, monkeypatch):
    """Whatever stands in it."""
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    monkeypatch.setattr(native_build, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(native_build.platform, "machine", lambda: "x86_64")
    sets = {
        "cpu/a/run.cpp": [""],
        "cpu/a/isa/kernels.cpp": [".avx2", ".avx512", ".portable"],
        "cpu/a/isa/kernels_bf16.cpp": [".avx2", ".avx512", ".avx512_bf16", ".portable"],
        "cpu/a/isa/kernels_amx.cpp": [".amx", ".portable"],
        "register/norms.cpp": [""],
        "register/cuda/conv.cpp": [""],
    }
    for name in sets:
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).write_text('#include "dot_bf16.h"\n#include "amx_tiles.h"\n')

    def objects(nvcc, amx):
        file = native_build.NinjaFile(Path("build"))
        native_build._add_sources(file, nvcc, amx)
        return set(file.objects)

    assert objects("nvcc", True) == {f"build/{name}{isa}.o" for name, suffixes in sets.items() for isa in suffixes}
    assert objects("nvcc", True) - objects(None, True) == {"build/register/cuda/conv.cpp.o"}
    assert objects("nvcc", True) - objects("nvcc", False) == {"build/cpu/a/isa/kernels_amx.cpp.amx.o"}
    monkeypatch.setattr(native_build.platform, "machine", lambda: "aarch64")
    assert {name.split(".")[-2] for name in objects(None, False) if "/isa/" in name} == {"portable"}


def test_architectures_with_clusters():
    named = native_build.with_clusters
    assert named(["8.0", "8.6"]) == "-gencode=arch=compute_90a,code=sm_90a", "as for Hopper's own sources"
    assert named(["8.0", "9.0a", "10.0a", "PTX 100"]).split() == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100a,code=sm_100a",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_an_nvcc_before_hopper_builds_no_cuda_part(monkeypatch):
    monkeypatch.setattr(native_build.shutil, "which", lambda name: name)
    monkeypatch.setattr(native_build, "output_of", lambda *command: "release 11.8, V11.8.89")
    path, why = native_build.find_nvcc()
    assert path is None and why == "nvcc 11.8.89 does not know sm_90a: CUDA 12 or later is needed"


def test_compression_is_what_the_driver_of_that_compiler_reads():
    assert native_build.compression("13.0.88") == "--compress-mode=size"
    assert native_build.compression("12.8.93") == native_build.compression("12.0.1") == "-Xfatbin=-compress-all"


def test_jobs_follow_cores_memory_and_max_jobs(monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    pages = {"SC_AVPHYS_PAGES": (5 << 30) // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert native_build.jobs() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert native_build.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "7")
    assert native_build.jobs() == 7


def test_no_function_is_shared_between_instruction_sets():
    """One that is could be linked from the object whose instructions this CPU does not have."""
    objects = list((ROOT / "build/native/cpu").glob("*.avx*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("nothing was built here, or there is no nm")
    for path in objects:
        isa = path.name.split(".")[-2]
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True
        ).stdout
        shared = [s for s in symbols.splitlines() if s[17:18] in "WVu" and f"::{isa}::" not in s]
        assert not shared, f"{path.name}: {shared[:3]}"
