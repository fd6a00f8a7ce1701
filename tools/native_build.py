"""Builds resnet_fused/_native.so: what is on this machine, what follows from it, and the ninja file that does it.

Used by setup.py. Imports neither torch nor the package: both may be absent or half installed.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
TORCH_TARGET = "2.11"  # oldest torch whose stable ABI the library may use
# PTX of the newest plain architecture is added for devices that come later.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0a")
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


class CannotBuild(Exception):
    """One line: why there will be no compiled library."""


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def find_torch():
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuild("torch is not importable while building (pip needs --no-build-isolation)")
    folder = Path(spec.origin).parent
    if not (folder / "include/torch/csrc/stable/library.h").exists():
        raise CannotBuild(f"torch {importlib.metadata.version('torch')} has no headers of the stable ABI")
    return importlib.metadata.version("torch"), folder


def find_compiler():
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return path, output_of(path, "--version").splitlines()[0]
    raise CannotBuild("no C++ compiler found ($CXX, c++, g++, clang++)")


def knows_amx(compiler):
    """g++ 11, clang 12 and later do."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    command = [compiler, *AMX_FLAGS.split(), "-x", "c++", "-fsyntax-only", "/dev/null"]
    return subprocess.run(command, capture_output=True).returncode == 0


def find_ninja():
    if path := shutil.which("ninja"):
        return path
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    raise CannotBuild("ninja not found (pip install ninja)")


def find_nvcc():
    """(path, version) or (None, why not). Whether this machine has a GPU is not asked: it may be built elsewhere."""
    home = os.environ.get("CUDA_HOME")
    for name in filter(None, (home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc")):
        if path := shutil.which(name):
            version = re.search(r"V(\d+\.\d+\.\d+)", output_of(path, "--version")).group(1)
            if int(version.split(".")[0]) < 12:
                return None, f"nvcc {version} does not know sm_90a: CUDA 12 or later is needed"
            return path, version
    return None, "nvcc not found ($CUDA_HOME, PATH, /usr/local/cuda)"


def compression(version):
    """The flag that compresses the kernels of all architectures: 83 MB become 14, unpacked when a kernel is first used.

    zstd needs a driver of CUDA 12.4 or later, which a library of nvcc 13 needs anyway (580); earlier compilers keep to the
    older format, which every driver reads.
    """
    return "--compress-mode=size" if int(version.split(".")[0]) >= 13 else "-Xfatbin=-compress-all"


def architectures(nvcc):
    """(-gencode flags, names) from TORCH_CUDA_ARCH_LIST, else the defaults that this nvcc knows and PTX."""
    known = {int(arch) for arch in re.findall(r"compute_(\d+)$", output_of(nvcc, "--list-gpu-arch"), re.M)}
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not wanted:
        plain = [arch for arch in DEFAULT_ARCHITECTURES if number(arch) in known]
        newest = max(number(arch) for arch in plain)
        return gencode(plain) + f" -gencode=arch=compute_{newest},code=compute_{newest}", [*plain, f"PTX {newest}"]
    if unknown := [
        arch for arch in wanted if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch) or number(arch) not in known
    ]:
        raise CannotBuild(f"TORCH_CUDA_ARCH_LIST has {unknown[0]}, which {nvcc} does not know")
    return gencode(wanted), wanted


def with_clusters(archs):
    """-gencode flags of those of `archs` that have clusters; Hopper's where none has, as for its own sources."""
    able = [arch for arch in archs if number(arch.removeprefix("PTX ")) >= number(HOPPER)]
    plain = [arch for arch in able if not arch.startswith("PTX ")]
    ptx = [f"-gencode=arch=compute_{number(arch)},code=compute_{number(arch)}" for arch in able if arch not in plain]
    return " ".join([gencode(plain or [HOPPER]), *ptx])


def number(arch):
    return int(re.sub(r"\D", "", arch.split("+")[0]))


def gencode(archs):
    flags = []
    for arch in archs:
        name = arch.split("+")[0].replace(".", "")
        flags.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{name},code=compute_{name}")
    return " ".join(flags)


def jobs():
    """MAX_JOBS, else what cores and free memory allow: a compiler process needs up to 2 GiB."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 << 30
    return max(1, min(os.cpu_count() or 1, free >> 31))


def stamp():
    """What the library and the package must agree on, read from the package without importing it."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "resnet_fused/version.py").read_text()).group(1)
    abi = re.search(r"^ABI = (\d+)", (ROOT / "resnet_fused/version.py").read_text(), re.M).group(1)
    return {"version": version, "abi": int(abi)}


def write_if_changed(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def quoted(path):
    """A path as part of a command in a ninja file."""
    return shlex.quote(str(path)).replace("$", "$$")


class NinjaFile:
    """Sources and objects are relative to ROOT, so that a path of the machine never has to be escaped."""

    def __init__(self, folder):
        self.folder, self.objects = folder, []
        self.lines = ["ninja_required_version = 1.3", f"builddir = {folder}"]

    def rule(self, name, command, **extra):
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        self.lines += [f"  {key} = {value}" for key, value in extra.items()]

    def compile(self, rule, source, suffix="", flags=""):
        out = self.folder / f"{source.relative_to(CSRC)}{suffix}.o"
        self.lines += [f"build {out}: {rule} {source.relative_to(ROOT)}", f"  flags = {flags}"]
        self.objects.append(str(out))

    def write(self, target, link_rule):
        self.lines += [f"build {target}: {link_rule} {' '.join(self.objects)}", f"default {target}"]
        write_if_changed(ROOT / self.folder / "build.ninja", "\n".join(self.lines) + "\n")


def build(cuda, say, folder="build/native", extra_flags=""):
    """Builds <folder>/_native.so, the CUDA part if `cuda` and nvcc is there; returns (path, what it is).

    extra_flags: of the C++ compiler, also when it links. Raises CannotBuild.
    """
    if platform.system() != "Linux":
        raise CannotBuild(f"the library is built on Linux only, this is {platform.system()}")
    import fcntl  # Linux has it

    folder = Path(folder)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with open(ROOT / folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two ninjas in one folder would write the same objects
        return _build(folder, cuda, say, extra_flags)


def _build(folder, cuda, say, extra_flags):
    torch_version, torch = find_torch()
    compiler, compiler_version = find_compiler()
    ninja = find_ninja()
    nvcc, nvcc_version = find_nvcc() if cuda else (None, "RESNET_FUSED_BUILD=cpu")
    say(f"torch {torch_version} in {torch}; stable ABI of {TORCH_TARGET}")
    say(f"C++ compiler {compiler}: {compiler_version}")
    info = {**stamp(), "torch": torch_version, "stable_abi": TORCH_TARGET, "compiler": compiler_version}
    gencodes = clusters = None
    if nvcc:
        gencodes, info["architectures"] = architectures(nvcc)
        clusters = f"{with_clusters(info['architectures'])} {compression(nvcc_version)}"
        gencodes = f"{gencodes} {compression(nvcc_version)}"
        info["cuda"] = f"nvcc {nvcc_version}"
        say(f"{nvcc} {nvcc_version}: CUDA part for {', '.join(info['architectures'])}")
    else:
        info |= {"cuda": None, "without_cuda": nvcc_version}
        say(f"{nvcc_version}: no CUDA part")
    write_if_changed(ROOT / folder / "build_info.h", f'inline constexpr char kBuildInfo[] = R"({json.dumps(info)})";\n')

    file = NinjaFile(folder)
    hopper = f"{gencode([HOPPER])} {compression(nvcc_version)}" if nvcc else None
    _add_rules(file, torch, compiler, nvcc, gencodes, clusters, hopper, extra_flags)
    _add_sources(file, nvcc, knows_amx(compiler))
    target = folder / "_native.so"
    file.write(target, "link")
    say(f"building with {jobs()} jobs (MAX_JOBS)")
    done = subprocess.run([ninja, "-f", str(folder / "build.ninja"), "-j", str(jobs())], cwd=ROOT)
    if done.returncode != 0:
        raise CannotBuild(f"the compiler failed (exit status {done.returncode}); its messages are in the build output")
    return ROOT / target, info


def _add_rules(file, torch, compiler, nvcc, gencodes, clusters, hopper, extra_flags=""):
    major, minor = map(int, TORCH_TARGET.split("."))
    depends, extra = {"depfile": "$out.d", "deps": "gcc"}, extra_flags and f" {extra_flags}"
    compile_one = f"-I{CSRC.relative_to(ROOT)} $flags -MMD -MF $out.d -c $in -o $out"
    torch_flags = f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000 -isystem {quoted(torch / 'include')}"
    file.rule("cxx", f"{quoted(compiler)} {CXX_FLAGS}{extra} {torch_flags} -I{file.folder} {compile_one}", **depends)
    # libtorch, which needs libtorch_cuda where there is one: Place's stream is looked up through it.
    linker, libraries = "--no-as-needed,-z,defs", f"-L{quoted(torch / 'lib')} -ltorch -ltorch_cpu"
    if nvcc:
        file.rule("nvcc", f"{quoted(nvcc)} {NVCC_FLAGS} {gencodes} {compile_one}", **depends)
        file.rule("nvcc_sm90", f"{quoted(nvcc)} {NVCC_FLAGS} {clusters} {compile_one}", **depends)
        file.rule("nvcc_sm90a", f"{quoted(nvcc)} {NVCC_FLAGS} {hopper} {compile_one}", **depends)
        # cudart is static and knows the driver only through dlopen: the library loads where there is no driver.
        command = f"{quoted(nvcc)} -shared -cudart static -Xlinker {linker},--exclude-libs,ALL"
    else:
        command = f"{quoted(compiler)} -shared{extra} -Wl,{linker}"
    file.rule("link", f"{command} $in -o $out {libraries}")


def instruction_sets(name, amx):
    """{instruction set: flags} of a source in a folder isa/. *amx*: the matrix unit, if the compiler knows it, and plain C++ in
    its place. *_bf16*: AVX512-BF16 besides the others."""
    if "amx" in name:
        return {"portable": ""} | ({"amx": AMX_FLAGS} if amx else {})
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"portable": ""}
    return INSTRUCTION_SETS | ({"avx512_bf16": BF16_FLAGS} if "_bf16" in name else {})


def _add_sources(file, nvcc, amx):
    """The folder and the name of a source say what it is compiled for (csrc/README.md); its text is not read."""
    defines = {"cpu": "-DRESNET_FUSED_WITH_AMX" if amx else "", "register": "-DRESNET_FUSED_WITH_CUDA" if nvcc else ""}
    for source in sorted(CSRC.rglob("*.cpp")):
        folders = source.relative_to(CSRC).parts[:-1]
        if "isa" in folders:
            for isa, flags in instruction_sets(source.stem, amx).items():
                file.compile("cxx", source, f".{isa}", f"-DRESNET_FUSED_ISA={isa} {flags}")
        elif nvcc or "cuda" not in folders:
            file.compile("cxx", source, flags=defines[folders[0]])
    for source in sorted(CSRC.rglob("*.cu")) if nvcc else ():
        rules = {HOPPER_SOURCE: "nvcc_sm90a", CLUSTER_SOURCE: "nvcc_sm90"}
        file.compile(next((rule for end, rule in rules.items() if source.name.endswith(end)), "nvcc"), source)
