"""Compiles the CUDA sources with g++ for the emulator: one library of torch ops, and the self-test executables.

Objects are kept under build/emulator by the content of everything they include, so a changed kernel costs seconds.
EMU_SANITIZE=1 builds with AddressSanitizer and UBSan; Python must then run with libasan preloaded (`sanitizer_env`).
EMU_SEED and EMU_POLICY (0, 1; unset: drawn per block) fix the schedule.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE, CSRC = ROOT / "tests" / "emulator", ROOT / "csrc"
SEED = int(os.environ.get("EMU_SEED", "1"))
POLICY = int(os.environ.get("EMU_POLICY", "-1"))
MULTIPROCESSORS = 3  # few, so that grids of small tests stride and have chunks to merge
SANITIZE = os.environ.get("EMU_SANITIZE") == "1"
# Contraction is off: each operation rounds once unless a kernel asks for fma. Automatic variables start as NaN
# patterns.
FLAGS = [
    "-std=c++20",
    "-DHOST_EMULATION",
    "-DRESNET_FUSED_EMULATION",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-ftrivial-auto-var-init=pattern",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",  # GCC's note about its ABI before 4.6
]
PLAIN = ["-O2"]
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Every program and every library of checks/ is linked with these sources.
MACHINE = (
    "core/machine.cpp", "core/shadow.cpp", "hopper/cluster.cpp", "hopper/early.cpp", "hopper/hopper.cpp",
    "hopper/hopper_stores.cpp",
)  # fmt: skip
# mutate.py sets both: objects that replace the object of a source, {path of the source: path of the object}, and the
# folder for everything that is linked with them.
REPLACED = json.loads(os.environ.get("EMU_OBJECTS", "{}"))
LINKED = os.environ.get("EMU_LINKED")


def why_not():
    """Why nothing can be compiled here, or None."""
    if shutil.which("g++") is None:
        return "g++ not found: the emulator compiles the CUDA kernels with it"
    if b"g++" not in _version() and b"GCC" not in _version():
        return "g++ is not GCC"
    return None


@functools.cache
def _version():
    return subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout.splitlines()[0]


def _key(command, dependencies):
    digest = hashlib.sha256(_version() + repr(command).encode())
    for path in dependencies:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def dependencies(depfile):
    return depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()


def name_of(source):
    """The name of a source's object and record of dependencies. It has the folder's name, because two folders may have
    a file of one name."""
    return f"{source.parent.name}-{source.stem}"


def compile_object(source, flags, folder):
    """The object of `source`. It is compiled unless an object of the same content exists."""
    if str(source) in REPLACED:
        return Path(REPLACED[str(source)])
    command = ["nice", "-n", "5", "g++", *flags, "-x", "c++", "-c", str(source)]
    name = name_of(source)
    depfile = folder / f"{name}.d"
    if depfile.exists() and all(map(os.path.exists, dependencies(depfile))):
        built = folder / f"{name}-{_key(command, dependencies(depfile))}.o"
        if built.exists():
            return built
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.{os.getpid()}.tmp"
    new_depfile = folder / f"{name}.{os.getpid()}.d"
    subprocess.run([*command, "-o", str(unfinished), "-MMD", "-MF", str(new_depfile)], check=True)
    built = folder / f"{name}-{_key(command, dependencies(new_depfile))}.o"
    for stale in folder.glob(f"{name}-????????????????.o"):
        stale.unlink(missing_ok=True)
    unfinished.replace(built)  # renaming is atomic, so two test processes may build at once
    new_depfile.replace(depfile)
    return built


def link(name, objects, options, folder):
    """<folder>/<name>-<hash> of `objects`: a library if the name ends in .so, otherwise an executable."""
    folder = Path(LINKED or folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = os.path.splitext(name)
    command = ["g++", *(["-shared"] if suffix else []), *map(str, objects), *options]
    built = folder / f"{stem}-{_key(command, objects)}{suffix}"
    if not built.exists():
        for stale in folder.glob(f"{stem}-????????????????{suffix}"):
            stale.unlink(missing_ok=True)
        unfinished = folder / f"{stem}.{os.getpid()}.tmp"
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.replace(built)
    return built


def kernel_flags(sanitize=SANITIZE, root=ROOT):
    return [*FLAGS, *(SANITIZED if sanitize else PLAIN), f"-I{root}/csrc", f"-I{root}/tests"]


def folder_of(sanitize=SANITIZE):
    return ROOT / "build" / "emulator" / ("sanitized" if sanitize else "plain")


def _compile(sources, flags, folder):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_object(source, flags, folder), sources))


@contextlib.contextmanager
def _alone():
    """Lets one process at a time build. A process that waited finds the results of the first."""
    folder = ROOT / "build" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@_alone()
def executable(name, sanitize=SANITIZE, extra=()):
    """A self-test of tests/emulator/checks/<name>.cpp."""
    flags, folder = [*kernel_flags(sanitize), *extra], folder_of(sanitize)
    if extra:
        folder = folder / hashlib.sha256(repr(extra).encode()).hexdigest()[:8]
    objects = _compile([HERE / "checks" / f"{name}.cpp", *(HERE / m for m in MACHINE)], flags, folder)
    return link(name, objects, flags, folder)


@_alone()
def c_library(name, kernels, sanitize=SANITIZE):
    """C functions of tests/emulator/checks/<name>.cpp for ctypes, and the csrc/cuda sources `kernels` (a glob) they launch."""
    flags, folder = kernel_flags(sanitize), folder_of(sanitize)
    sources = [HERE / "checks" / f"{name}.cpp", *(HERE / m for m in MACHINE), *sorted(CSRC.glob(f"cuda/{kernels}"))]
    return link(f"{name}.so", _compile(sources, flags, folder), flags, folder)


@_alone()
def library(sanitize=SANITIZE):
    """The library that registers torch.ops.resnet_fused_emu: every launcher of csrc/cuda on CPU tensors."""
    import torch

    torch_folder = Path(torch.__file__).parent
    flags, folder = kernel_flags(sanitize), folder_of(sanitize)
    sources = [HERE / "core" / "control.cpp", *(HERE / m for m in MACHINE), *sorted(CSRC.glob("cuda/**/*.cu"))]
    objects = _compile(sources, flags, folder)
    with_torch = [*flags, "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{torch_folder}/include"]
    registered = [CSRC / "register" / name for name in ("check.cpp", "norms.cpp")]
    objects += _compile([*registered, *sorted(CSRC.glob("register/cuda/*.cpp"))], with_torch, folder)
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-ltorch", "-ltorch_cpu"]
    return link("emulated.so", objects, [*flags, *libraries], folder)


@_alone()
def pretended_library():
    """The library of a CUDA device that is not there (pretended.py): the checks of csrc/register, and launchers that record."""
    torch_folder, folder = Path(importlib.util.find_spec("torch").origin).parent, ROOT / "build" / "emulator" / "device"
    flags = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
    flags += [f"-I{ROOT}/csrc", f"-I{ROOT}/tests", f"-isystem{torch_folder}/include"]
    objects = _compile(
        [HERE / "device" / f"{name}.cpp" for name in ("launchers", "device", "operators")], flags, folder
    )
    names = ["-DRESNET_FUSED_NAMESPACE=resnet_fused_pretended", "-DRESNET_FUSED_CUDA_KEY=CUDA"]
    stable = [*flags, *names, "-DRESNET_FUSED_EMULATION", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    registered = [CSRC / "register" / name for name in ("check.cpp", "norms.cpp")]
    objects += _compile([*registered, *sorted(CSRC.glob("register/cuda/*.cpp"))], stable, folder)
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    return link("pretended.so", objects, [*flags, *libraries], folder)


def cpu_library():
    """The package's own library with the sanitizers, without the CUDA part: every op on CPU tensors."""
    sys.path.insert(0, str(ROOT / "tools"))
    import native_build

    return native_build.build(None, lambda text: None, "build/native-sanitized", " ".join(SANITIZED))[0]


@functools.cache
def control():
    """The loaded library for ctypes. Loading the library registers the ops."""
    import torch

    path = library()
    torch.ops.load_library(path)
    lib = ctypes.CDLL(str(path))
    lib.emu_configure.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
    return lib


def configure(seed=SEED, policy=POLICY, multiprocessors=MULTIPROCESSORS):
    """Sets the schedule of the following launches. A failing test shows this line, and a fault names the seed."""
    print(f"emulator: EMU_SEED={seed} EMU_POLICY={policy}")
    control().emu_configure(seed, policy, multiprocessors)


def last_launch():
    """(blocks in x, in y, in z, threads of a block) of the launch before this call."""
    numbers = (ctypes.c_int64 * 4)()
    control().emu_last_launch(numbers)
    return tuple(numbers)


def load():
    """torch.ops.resnet_fused_emu under the schedule of EMU_SEED and EMU_POLICY. The library is built if it is
    missing."""
    import torch

    configure()
    return torch.ops.resnet_fused_emu


def sanitizer_env():
    """Environment for a Python that loads the sanitized library."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        **os.environ,
        "EMU_SANITIZE": "1",
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main():
    """Builds what the tests will ask for, before them: then every core compiles, and no test waits."""
    if (why := why_not()) is not None:
        print(f"no emulator: {why}", file=sys.stderr)
        return
    library()
    pretended_library()


if __name__ == "__main__":
    main()
