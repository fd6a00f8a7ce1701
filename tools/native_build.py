"""Builds resnet_fused/_native.so: which source is compiled how, and the processes that do it.

Used by setup.py. native_machine.py finds what is on this machine. Needs neither torch, whose headers of the stable ABI lie
in third_party/torch, nor anything else that would have to be installed.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native_machine
from native_machine import CannotBuild, first_error, jobs, number

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
TORCH_TARGET = "2.11"  # oldest torch whose stable ABI the library may use
TORCH_HEADERS = ROOT / "third_party" / "torch" / "include"  # of that torch
# Sources with Hopper's own instructions (csrc/ptx/hopper.cuh), which no other architecture, and no PTX, can hold.
HOPPER_SOURCE, HOPPER = "_sm90a.cu", "9.0a"
# Sources with instructions that it and all later ones have (csrc/ptx/cluster.cuh).
CLUSTER_SOURCE = "_sm90.cu"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512"
INSTRUCTION_SETS = {"avx512": AVX512, "avx2": "-mavx2 -mfma -mf16c", "portable": ""}
BF16_FLAGS = f"{AVX512} -mavx512bf16"
AMX_FLAGS = f"{BF16_FLAGS} -mamx-tile -mamx-bf16"
# -fno-math-errno lets sqrt be a vector instruction; contraction makes FMAs. NaN keeps its meaning: no -ffast-math.
CXX_FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -Wall -Wextra "
    "-Wno-unknown-pragmas -Wno-maybe-uninitialized"  # g++ 12 takes _mm512_undefined_ps() at its word
)
NVCC_FLAGS = "-std=c++17 -O3 -lineinfo -Xcompiler -fPIC,-fvisibility=hidden -Xptxas --warn-on-spills"
# What the library needs when it is loaded; torch has loaded both by then. libtorch needs libtorch_cuda where there is one,
# through which the current stream is looked up.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so")


class CudaFailed(CannotBuild):
    """One line: why there will be no CUDA part, although one was wanted."""


def compression(version):
    """The flag that compresses the kernels of all architectures: 83 MB become 14, unpacked when a kernel is first used.

    zstd needs a driver of CUDA 12.4 or later, which a library of nvcc 13 needs anyway (580); earlier compilers keep to the
    older format, which every driver reads.
    """
    return "--compress-mode=size" if int(version.split(".")[0]) >= 13 else "-Xfatbin=-compress-all"


def with_clusters(archs):
    """-gencode flags of those of `archs` that have clusters; Hopper's where none has, as for its own sources."""
    able = [arch for arch in archs if number(arch) >= number(HOPPER)]
    return gencode(able if any(not arch.startswith("PTX ") for arch in able) else [HOPPER, *able])


def gencode(archs):
    """-gencode flags of `archs`: 8.0 is machine code, 8.0+PTX both, and PTX 80 is PTX alone."""
    flags = []
    for arch in archs:
        name = re.sub(r"PTX|[ .+]", "", arch)
        if not arch.startswith("PTX "):
            flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if "PTX" in arch:
            flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return " ".join(flags)


def stamp():
    """What the library and the package must agree on, read from the package without importing it."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "resnet_fused/version.py").read_text()).group(1)
    abi = re.search(r"^ABI = (\d+)", (ROOT / "resnet_fused/version.py").read_text(), re.M).group(1)
    return {"version": version, "abi": int(abi)}


class Compilation:
    """Commands that make the objects of one library in `folder`, and the one that links them.

    Paths are relative to ROOT, where the commands run. An object is made again when its command, or the text of a file that
    it was made from, is not what it was.
    """

    def __init__(self, folder, version=""):
        self.folder, self.version = folder, version  # the version of the compilers: another one makes other objects
        self.commands = {}  # {object: command}

    def add(self, command, source, suffix="", flags=""):
        out = self.folder / f"{source.relative_to(CSRC)}{suffix}.o"
        source = str(source.relative_to(ROOT))
        self.commands[out] = [*command, *flags.split(), "-MMD", "-MF", f"{out}.d", "-c", source, "-o", str(out)]

    def _key(self, command, names):
        digest = hashlib.sha256(f"{self.version} {command}".encode())
        for name in names:
            digest.update((ROOT / name).read_bytes())
        return digest.hexdigest()

    def _is_current(self, out):
        try:
            key, *names = (ROOT / f"{out}.key").read_text().splitlines()
            return (ROOT / out).exists() and key == self._key(self.commands[out], names)
        except (OSError, ValueError):
            return False

    def _make(self, out):
        (ROOT / out).parent.mkdir(parents=True, exist_ok=True)
        _run(self.commands[out], CudaFailed if ".cu." in out.name else CannotBuild)
        listed = (ROOT / f"{out}.d").read_text().replace("\\\n", " ").split(":", 1)[1].split()
        # nvcc also lists the headers of its toolkit, with paths that may have blanks; the version stands for those.
        names = sorted(name for name in listed if not os.path.isabs(name) and (ROOT / name).is_file())
        (ROOT / f"{out}.key").write_text("\n".join([self._key(self.commands[out], names), *names]))

    def run(self, say):
        todo = [out for out in self.commands if not self._is_current(out)]
        say(f"{len(todo)} of {len(self.commands)} sources to compile, {jobs(say)} at a time (MAX_JOBS)")
        with ThreadPoolExecutor(jobs()) as pool:
            try:
                for done, _ in enumerate(pool.map(self._make, todo), 1):
                    if done % 10 == 0:
                        say(f"{done} of {len(todo)} compiled")
            finally:
                pool.shutdown(cancel_futures=True)

    def link(self, command, libraries):
        """<folder>/_native.so. Stubs stand for the libraries of torch: their functions are found when it is loaded."""
        failure = CudaFailed if "-cudart" in command else CannotBuild
        for name in libraries:
            stub = [*command, "-x", "c++", "/dev/null", "-o", f"{self.folder}/{name}"]
            _run([*stub, *_to_linker(command, f"-soname,{name}")], failure)
        out = f"{self.folder}/_native.so"
        options = [*_to_linker(command, "--no-as-needed,--exclude-libs,ALL"), f"-L{self.folder}"]
        names = [f"-l{name.removeprefix('lib').removesuffix('.so')}" for name in libraries]
        _run([*command, *map(str, self.commands), "-o", out, *options, *names], failure)
        return ROOT / out


def _to_linker(command, options):
    return ["-Xlinker", options] if "-cudart" in command else [f"-Wl,{options}"]


def _run(command, failure):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout:
        print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise failure(f"{Path(command[0]).name} failed: {first_error(done.stdout) or done.returncode}")


def build(cuda, say, folder="build/native", extra_flags=""):
    """Builds <folder>/_native.so; returns (path, what it is).

    cuda: None (no CUDA part), "here" (for what this machine can run, or TORCH_CUDA_ARCH_LIST) or "all" (every architecture).
    extra_flags: of the C++ compiler, also when it links. Raises CannotBuild.
    """
    if platform.system() != "Linux":
        raise CannotBuild(f"the library is built on Linux only, this is {platform.system()}")
    import fcntl  # Linux has it

    folder = Path(folder)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with open(ROOT / folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one folder would write the same objects
        compiler, version = native_machine.find_compiler(say)
        say(f"C++ compiler {' '.join(compiler)}: {version}")
        info = {**stamp(), "stable_abi": TORCH_TARGET, "compiler": version}
        try:
            nvcc, facts = _nvcc(cuda, say)
            return _build(folder, compiler, nvcc, {**info, **facts}, say, extra_flags)
        except CudaFailed as why:
            say(f"the CUDA part is left out: {why}")
            without = {"cuda": None, "without_cuda": str(why), "cuda_failed": True}
            return _build(folder, compiler, None, {**info, **without}, say, extra_flags)


def _nvcc(cuda, say):
    """(path of nvcc or None, what to record of it)."""

    def without(why):
        say(f"no CUDA part: {why}")
        return None, {"cuda": None, "without_cuda": why}

    everything, listed = cuda == "all", os.environ.get("TORCH_CUDA_ARCH_LIST")
    if cuda is None:
        return without("RESNET_FUSED_BUILD=cpu")
    if not everything and native_machine.torch_without_cuda():
        return without("torch is built without CUDA (RESNET_FUSED_BUILD=all builds it nevertheless)")
    if not (everything or listed or native_machine.gpus()):
        return without("no GPU here, and neither TORCH_CUDA_ARCH_LIST nor RESNET_FUSED_BUILD=all asks for one")
    try:
        nvcc, version = native_machine.find_nvcc()
        if nvcc is None:
            return without(version)
        archs = native_machine.architectures(nvcc, everything, say)
    except CannotBuild as why:
        raise CudaFailed(str(why)) from None
    if not archs:
        return without("the GPUs here are older than compute capability 8.0")
    say(f"{nvcc} {version}: CUDA part for {', '.join(archs)}")
    return nvcc, {"cuda": f"nvcc {version}", "architectures": archs}


def _build(folder, compiler, nvcc, info, say, extra_flags):
    header = ROOT / folder / "build_info.h"
    header.write_text(f'inline constexpr char kBuildInfo[] = R"json({json.dumps(info)})json";\n')
    files = Compilation(folder, f"{info['compiler']} {info['cuda']}")
    cxx, cuda = commands(folder, compiler, nvcc, info, extra_flags)
    add_sources(files, cxx, cuda, native_machine.knows_amx(compiler, AMX_FLAGS))
    files.run(say)
    link = [nvcc, "-shared", "-cudart", "static"] if nvcc else [*compiler, "-shared", *extra_flags.split()]
    return files.link(link, TORCH_LIBRARIES), info


def commands(folder, compiler, nvcc, info, extra_flags=""):
    """(command of C++, {end of a source's name: command of nvcc})."""
    major, minor = map(int, TORCH_TARGET.split("."))
    include = f"-I{CSRC.relative_to(ROOT)}"
    torch = [
        f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000",
        "-isystem",
        str(TORCH_HEADERS.relative_to(ROOT)),
    ]
    cxx = [*compiler, *CXX_FLAGS.split(), *extra_flags.split(), *torch, f"-I{folder}", include]
    if not nvcc:
        return cxx, {}
    archs, compressed = info["architectures"], compression(info["cuda"].split()[-1])
    # Without $CXX nvcc takes the g++ that it finds; a compiler with arguments is none of its own options.
    host = ["-ccbin", *compiler] if os.environ.get("CXX") and len(compiler) == 1 else []
    flags = {HOPPER_SOURCE: gencode([HOPPER]), CLUSTER_SOURCE: with_clusters(archs), ".cu": gencode(archs)}
    return cxx, {
        end: [nvcc, *host, *NVCC_FLAGS.split(), *gencodes.split(), compressed, include]
        for end, gencodes in flags.items()
    }


def instruction_sets(name, amx):
    """{instruction set: flags} of a source in a folder isa/. *amx*: the matrix unit, if the compiler knows it, and plain C++ in
    its place. *_bf16*: AVX512-BF16 besides the others."""
    if "amx" in name:
        return {"portable": ""} | ({"amx": AMX_FLAGS} if amx else {})
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"portable": ""}
    return INSTRUCTION_SETS | ({"avx512_bf16": BF16_FLAGS} if "_bf16" in name else {})


def add_sources(files, cxx, cuda, amx):
    """The folder and the name of a source say what it is compiled for (csrc/README.md); its text is not read."""
    defines = {"cpu": "-DRESNET_FUSED_WITH_AMX" if amx else "", "register": "-DRESNET_FUSED_WITH_CUDA" if cuda else ""}
    for source in sorted(CSRC.rglob("*.cu")) if cuda else ():
        files.add(next(command for end, command in cuda.items() if source.name.endswith(end)), source)
    for source in sorted(CSRC.rglob("*.cpp")):
        folders = source.relative_to(CSRC).parts[:-1]
        if "isa" in folders:
            for isa, flags in instruction_sets(source.stem, amx).items():
                files.add(cxx, source, f".{isa}", f"-DRESNET_FUSED_ISA={isa} {flags}")
        elif cuda or "cuda" not in folders:
            files.add(cxx, source, flags=defines[folders[0]])
