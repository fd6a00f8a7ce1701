"""The decisions of setup.py: what is built, what is not and why, what an install leaves behind. Compiles next to nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import tracked

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "setup.py").exists():
    pytest.skip("not a source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))
import native_build  # noqa: E402


@pytest.fixture
def tree(tmp_path):
    """A copy of the project without anything built."""
    for name in ("csrc", "tools", "resnet_fused", "third_party"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("_native*.so", "_native_build.json", "__pycache__"),
        )
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    return tmp_path


def install(tree, mode, **variables):
    """`setup.py build_ext --inplace` where no program but those in `bin` can be found."""
    (tree / "bin").mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": str(tree / "bin"), "RESNET_FUSED_BUILD": mode}
    environment.pop("CXX", None)
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=environment | variables,
        capture_output=True,
        text=True,
    )


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{shutil.which('sh')}\n{text}\n")
    path.chmod(0o755)


def not_built(tree):
    return json.loads((tree / "resnet_fused/_native_build.json").read_text())["not_built"]


def test_without_a_compiler_the_install_is_pure_python_and_says_so(tree):
    (tree / "resnet_fused/_native.so").write_bytes(b"left over from another machine")
    run = install(tree, "auto")
    assert run.returncode == 0, run.stderr
    assert (
        "no compiled library, a pure Python install: no C++ compiler found: no c++, g++ or clang++ on PATH"
        in run.stdout
    )
    assert not (tree / "resnet_fused/_native.so").exists()
    assert "apt install g++" in not_built(tree)


def test_a_failing_compiler_is_no_install_error(tree):
    program(
        tree / "bin/c++",
        'case "$*" in *-fsyntax-only*|--version) echo odd 1.0;; *) echo "x.h:1: error: odd"; exit 1;; esac',
    )
    run = install(tree, "cpu")
    assert run.returncode == 0 and "odd 1.0" in run.stdout, run.stderr
    assert not_built(tree) == "c++ failed: x.h:1: error: odd", "pip does not show the compiler's messages"


def test_a_compiler_that_is_asked_for_and_fails_is_named(tree):
    program(tree / "bin/old++", "echo unrecognized option; echo 'error: no C++20' >&2; exit 1")
    run = install(tree, "cpu", CXX="old++ -m64")
    assert run.returncode == 0, run.stderr
    assert "CXX=old++ -m64 cannot compile C++20 (error: no C++20); another compiler is looked for" in run.stdout
    assert not_built(tree) == "no C++ compiler found: old++ -m64: error: no C++20"


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
    assert run.returncode != 0 and "must be auto, all, cpu, 0 or 1, not 'yes'" in run.stderr


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project of two sources, in a folder whose name no shell takes as it is, with an nvcc that the test writes."""
    root = tmp_path / "a folder, d\u00e9j\u00e0 $HOME"
    for name, text in {
        "csrc/register/one.cpp": '#include "one.h"\n#include "build_info.h"\nint one() { return ONE + sizeof kBuildInfo; }\n',
        "csrc/register/one.h": "#define ONE 1\n",
        "csrc/cuda/two.cu": "int two() { return 2; }\n",
        "resnet_fused/version.py": '__version__ = "1.0"\nABI = 1\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(native_build, "ROOT", root)
    monkeypatch.setattr(native_build, "CSRC", root / "csrc")
    monkeypatch.setattr(native_build, "TORCH_HEADERS", root / "torch")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    for name in ("CXX", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cuda").mkdir()
    return root


def nvcc_that(small, compiles):
    listing = "--version) echo V12.8.93;; --list-gpu-arch) echo compute_80; echo compute_90;;"
    program(small.parent / "cuda/bin/nvcc", f'case "$*" in {listing} *) {compiles};; esac')


@needs_compiler
@pytest.mark.parametrize("mode", [None, "all"])
def test_the_cpu_kernels_survive_whatever_nvcc_does(small, mode):
    nvcc_that(small, "echo 'nvcc fatal: unsupported GNU version! error: too new'; exit 1")
    said = []
    library, info = native_build.build(mode, said.append)
    assert library.read_bytes()[:4] == b"\x7fELF" and info["cuda"] is None
    if mode:
        assert (
            info["cuda_failed"]
            and info["without_cuda"] == "nvcc failed: nvcc fatal: unsupported GNU version! error: too new"
        )
        assert f"the CUDA part is left out: {info['without_cuda']}" in said


@needs_compiler
def test_a_wrong_cuda_home_is_named_and_the_cpu_kernels_survive(small):
    _, info = native_build.build("all", lambda text: None)
    assert info["without_cuda"] == f"CUDA_HOME={small.parent / 'cuda'} has no bin/nvcc" and info["cuda_failed"]


@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("readelf") is None, reason="no nvcc, or no readelf")
def test_both_parts_are_in_one_library_that_torch_completes(small, monkeypatch):
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    library, info = native_build.build("all", lambda text: None)
    assert info["architectures"] == ["8.0"] and "cuda_failed" not in info
    again = []
    native_build.build("all", again.append)
    assert any(line.startswith("0 of 2 sources") for line in again), "nvcc's list of headers is understood"
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert [name for name in native_build.TORCH_LIBRARIES if name not in needed] == [] and "libcudart" not in needed


@needs_compiler
def test_only_what_changed_is_compiled_again(small):
    def build():
        said = []
        library, _ = native_build.build(None, said.append)
        return next(line.split(" sources")[0] for line in said if "to compile" in line), library.read_bytes()

    first, again = build(), build()
    assert first[0] == "1 of 1" and again == ("0 of 1", first[1])
    (small / "csrc/register/one.h").write_text("#define ONE 1000\n")
    changed = build()
    assert changed[0] == "1 of 1" and changed[1] != first[1]


@needs_compiler
def test_ccache_and_flags_in_cxx_are_honoured(small, monkeypatch, tmp_path):
    program(tmp_path / "my cache", 'echo "$@" >> "$(dirname "$0")/log"; exec "$@"')
    monkeypatch.setenv("CXX", f"'{tmp_path / 'my cache'}' c++ -DMINE")
    native_build.build(None, lambda text: None)
    assert "c++ -DMINE -std=c++20" in (tmp_path / "log").read_text()


def test_flags_of_architectures():
    assert native_build.gencode(["8.6", "9.0+PTX", "PTX 100"]).split() == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_sources_for_hopper_and_for_clusters(tmp_path, monkeypatch):
    """Hopper's for sm_90a alone, whatever is asked for: nothing else has their instructions, and PTX of compute_90 has none
    either. Those with clusters by a command of their own."""
    monkeypatch.setattr(native_build, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    monkeypatch.setattr(native_build, "TORCH_HEADERS", tmp_path)
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    for name in ("plain.cu", "strip_sm90a.cu", "cluster_sm90.cu"):
        (tmp_path / "csrc" / "cuda" / name).touch()
    info = {"architectures": ["8.0", "9.0+PTX"], "cuda": "nvcc 13.0.88"}
    files = native_build.Compilation(Path("build"))
    native_build.add_sources(files, *native_build.commands("build", ["g++"], "nvcc", info), False)
    for name, wanted in {
        "plain.cu": ["8.0", "9.0+PTX"], "strip_sm90a.cu": ["9.0a"], "cluster_sm90.cu": ["9.0+PTX"],
    }.items():  # fmt: skip
        command = files.commands[Path(f"build/cuda/{name}.o")]
        assert [word for word in command if "gencode" in word] == native_build.gencode(wanted).split()
        assert command[0] == "nvcc" and f"csrc/cuda/{name}" in command


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

    def objects(cuda, amx):
        files = native_build.Compilation(Path("build"))
        native_build.add_sources(files, ["c++"], {".cu": ["nvcc"]} if cuda else {}, amx)
        return set(map(str, files.commands))

    assert objects(True, True) == {f"build/{name}{isa}.o" for name, suffixes in sets.items() for isa in suffixes}
    assert objects(True, True) - objects(False, True) == {"build/register/cuda/conv.cpp.o"}
    assert objects(True, True) - objects(True, False) == {"build/cpu/a/isa/kernels_amx.cpp.amx.o"}
    monkeypatch.setattr(native_build.platform, "machine", lambda: "aarch64")
    assert {name.split(".")[-2] for name in objects(False, False) if "/isa/" in name} == {"portable"}


def test_architectures_with_clusters():
    named = native_build.with_clusters
    assert named(["8.0", "8.6"]) == "-gencode=arch=compute_90a,code=sm_90a", "as for Hopper's own sources"
    assert named(["8.0", "9.0a", "10.0a", "PTX 100"]).split() == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100a,code=sm_100a",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_compression_is_what_the_driver_of_that_compiler_reads():
    assert native_build.compression("13.0.88") == "--compress-mode=size"
    assert native_build.compression("12.8.93") == native_build.compression("12.0.1") == "-Xfatbin=-compress-all"


def test_the_headers_of_torch_are_those_that_the_sources_include():
    import vendor_torch

    headers = native_build.TORCH_HEADERS
    stored = {path.relative_to(headers).as_posix() for path in headers.rglob("*") if path.is_file()}
    assert stored == set(vendor_torch.wanted(headers))
    included = vendor_torch.INCLUDE.findall("".join(p.read_text() for p in (ROOT / "csrc/register").rglob("*.*")))
    assert included and set(included) <= stored, "run tools/vendor_torch.py"
    version = (headers / "torch/headeronly/version.h").read_text()
    major, minor = native_build.TORCH_TARGET.split(".")
    assert f"TORCH_VERSION_MAJOR {major}\n" in version and f"TORCH_VERSION_MINOR {minor}\n" in version


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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_a_source_archive_holds_the_whole_tree(tmp_path):
    """With its tests and pages: whoever has the archive alone can check and build everything."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    listed = set((tmp_path / "resnet_fused.egg-info/SOURCES.txt").read_text().splitlines())
    here = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert here <= listed, sorted(here - listed)
    assert {name for name in listed - here if "egg-info" not in name} == set()
