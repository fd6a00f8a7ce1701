"""What this machine is: the facts that must be equal where a measurement is used again."""

import functools
import hashlib
import importlib.metadata
import platform

import torch

from ..kernels import library


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def cpu_model():
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def library_build():
    """A hash of the compiled library's file, or "none"."""
    if library.why_absent() is not None:
        return "none"
    return hashlib.sha256(library.LIBRARY.read_bytes()).hexdigest()[:12]


def identity(device):
    """{fact: text} of a torch.device. A time that was measured here holds where all facts are equal."""
    facts = {"torch": torch.__version__, "library": library_build()}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return {"device": name, "arch": f"sm_{major}{minor}", "triton": version("triton"), **facts}
    isa = torch.backends.cpu.get_cpu_capability()
    return {"device": cpu_model(), "arch": isa, "threads": str(torch.get_num_threads()), **facts}
