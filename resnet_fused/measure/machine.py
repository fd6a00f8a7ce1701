"""What this machine is: the facts that must be equal where a measurement is used again."""

import contextlib
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
    """Such as "AMD EPYC (family 25, model 17)": virtual machines may leave the name short for processors that differ."""
    facts = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        for line in f:
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    if "cpu family" not in facts:
        return facts["model name"]
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


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
