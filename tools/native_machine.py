"""What the build of the compiled library finds on this machine: compilers, GPUs, the torch it is built beside.

What is asked for by an environment variable is honoured or refused in one line (CannotBuild). Imports neither torch nor
the package: both may be absent.
"""

import ctypes
import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

OLDEST = 80  # compute capability of the oldest GPU that has kernels
# PTX of the newest plain architecture is added for devices that come later.
DEFAULT_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0a", "10.0a")
# Names that torch's own builds take in TORCH_CUDA_ARCH_LIST, with what torch makes of them.
NAMED_ARCHITECTURES = {
    "Volta": "7.0+PTX", "Turing": "7.5+PTX", "Ampere": "8.0 8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX",
    "Blackwell": "10.0 12.0+PTX",
}  # fmt: skip


class CannotBuild(Exception):
    """One line: why there will be no compiled library, or no CUDA part in it."""


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def first_error(text):
    """The line of a compiler's output that says what is wrong, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b|not found|cannot", line, re.I)), (lines or [""])[-1])


def why_no_compiler(command):
    """Why `command`, a list, does not compile C++20, or None."""
    program = "#include <vector>\ntemplate <class T> concept C = requires(T t) { t + t; };\n"
    try:
        done = subprocess.run(
            [*command, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], input=program, capture_output=True, text=True
        )
    except OSError as error:
        return error.strerror
    return None if done.returncode == 0 else first_error(done.stderr) or f"exit status {done.returncode}"


def find_compiler(say):
    """(command as a list, first line of its --version): $CXX, else the first of c++, g++ and clang++ that compiles C++20."""
    asked = os.environ.get("CXX", "").strip()
    refused = []
    for name in filter(None, (asked, "c++", "g++", "clang++")):
        try:
            command = shlex.split(name)
        except ValueError as error:
            command, why = [name], str(error)
        else:
            why = why_no_compiler(command) if shutil.which(command[0]) else "not found"
        if why is None:
            version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
            return command, (version.splitlines() or [name])[0]
        if name == asked:
            say(f"CXX={asked} cannot compile C++20 ({why}); another compiler is looked for")
        if name == asked or why != "not found":
            refused.append(f"{name}: {why}")
    found = "; ".join(refused) or "no c++, g++ or clang++ on PATH (Debian, Ubuntu: apt install g++)"
    raise CannotBuild(f"no C++ compiler found: {found}")


def knows_amx(compiler, flags):
    """g++ 11, clang 12 and later do."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    command = [*compiler, *flags.split(), "-x", "c++", "-fsyntax-only", "/dev/null"]
    return subprocess.run(command, capture_output=True).returncode == 0


def find_nvcc():
    """(path, version), or (None, why not). Raises CannotBuild where CUDA_HOME or the nvcc found cannot be used."""
    home = os.environ.get("CUDA_HOME")
    if home and not shutil.which(f"{home}/bin/nvcc"):
        raise CannotBuild(f"CUDA_HOME={home} has no bin/nvcc")
    for name in [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        if path := shutil.which(name):
            try:
                version = re.search(r"V(\d+\.\d+\.\d+)", output_of(path, "--version")).group(1)
            except (OSError, subprocess.CalledProcessError, AttributeError):
                raise CannotBuild(f"{path} --version fails") from None
            if int(version.split(".")[0]) < 12:
                raise CannotBuild(f"nvcc {version} does not know sm_90a: CUDA 12 or later is needed")
            return path, version
    return None, "nvcc not found ($CUDA_HOME, PATH, /usr/local/cuda)"


def torch_without_cuda():
    """Whether the torch that the library is built beside is a build without CUDA; False where no torch is found.

    In pip's build isolation it cannot be imported, but sysconfig still names the environment that is installed into.
    """
    spec = importlib.util.find_spec("torch")
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for place in places:
        if (place / "version.py").is_file():
            return re.search(r"^cuda\b[^=]*= None", (place / "version.py").read_text(), re.M) is not None
    return False


@functools.cache
def gpus():
    """The compute capabilities of this machine's GPUs, such as [80, 90], asked of the driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, value = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []

    def attribute(code, device):
        return 0 if driver.cuDeviceGetAttribute(ctypes.byref(value), code, device) else value.value

    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    return sorted({10 * attribute(75, device) + attribute(76, device) for device in range(count.value)})


def architectures(nvcc, everything, say):
    """Names of what the CUDA part is compiled for: TORCH_CUDA_ARCH_LIST, else all if `everything`, else of these GPUs.

    Empty where nothing was asked for and no GPU here has kernels. Raises CannotBuild where the list cannot be honoured.
    """
    known = {int(arch) for arch in re.findall(r"compute_(\d+)$", output_of(nvcc, "--list-gpu-arch"), re.M)}
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    wanted = " ".join(NAMED_ARCHITECTURES.get(word, word) for word in re.split(r"[;,\s]+", listed)).split()
    if not wanted and not everything:
        return _of_gpus(known)
    if not wanted:
        return _newest(known, DEFAULT_ARCHITECTURES)
    for arch in wanted:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch) or (number(arch) >= OLDEST and number(arch) not in known):
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST has {arch}, which {nvcc} does not know")
    able = [arch for arch in wanted if number(arch) >= OLDEST]
    if not able:
        raise CannotBuild(f"TORCH_CUDA_ARCH_LIST={listed} has no architecture of 8.0 or later")
    if left_out := [arch for arch in wanted if arch not in able]:
        say(f"TORCH_CUDA_ARCH_LIST has {', '.join(left_out)}, left out: the kernels need 8.0 or later")
    return list(dict.fromkeys(able))


def _of_gpus(known):
    able = [capability for capability in gpus() if capability >= OLDEST]
    if not set(able) <= known:  # a GPU that is newer than nvcc runs PTX
        return _newest(known, DEFAULT_ARCHITECTURES)
    return [f"{capability // 10}.{capability % 10}" + "a" * (capability >= 90) for capability in able]


def _newest(known, names):
    plain = [arch for arch in names if number(arch) in known]
    return [*plain, f"PTX {max(number(arch) for arch in plain)}"]


def number(arch):
    return int(re.sub(r"\D", "", arch.split("+")[0]))


def jobs(say=lambda text: None):
    """MAX_JOBS, else what cores and free memory allow: a compiler process needs up to 2 GiB."""
    asked = os.environ.get("MAX_JOBS", "").strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if asked:
        say(f"MAX_JOBS must be a whole number above 0, not {asked}: left out of account")
    return max(1, min(cores(), available_memory() >> 31))


def available_memory():
    """In bytes, with what the system would give back from its caches; 4 GiB where it does not say."""
    try:
        return int(re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text()).group(1)) << 10
    except (OSError, AttributeError):
        return 4 << 30


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
