"""What this machine is, what was built and what runs: the facts that belong beside a number and in a bug report."""

import os
import platform
import sys

import torch

from .. import dispatch
from ..kernels import env, gpu, library
from ..measure import machine
from ..version import __version__
from . import table


def environment():
    """{fact: value} as text, in the order in which they are printed."""
    return {
        "resnet_fused": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": f"{machine.cpu_model()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "triton": machine.version("triton"),
        "torchvision": machine.version("torchvision"),
        **_gpu(),
        **_library(),
    }


def variables():
    """{environment variable: value or "not set"} of all that the package reads."""
    return {name: os.environ.get(name, "not set") for name in env.VARIABLES}


def text():
    """Everything, for `python -m resnet_fused info`."""
    # A backend runs on some GPUs and not on others, so that there is a list for each.
    devices = [torch.device("cpu"), *gpu.devices()] if gpu.devices() else [None]
    backends = [("backends" if d is None else f"backends on {d}", dispatch.backends(d)) for d in devices]
    parts = (("", environment()), *backends, ("environment variables", variables()))
    lines = []
    for title, facts in parts:
        lines += ["", f"{title}:"] if title else []
        width = max(map(len, facts))
        left = "  " if title else ""
        lines += [table.fit(f"{left}{name:<{width}}  {value}", len(left) + width + 2) for name, value in facts.items()]
    return "\n".join(lines)


def _gpu():
    if not torch.cuda.is_available():
        built = f"torch built with CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
        return {"gpu": f"none ({built})"}
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    found = {}
    for device in gpu.devices():
        major, minor = torch.cuda.get_device_capability(device)
        found[f"gpu {device.index}".removesuffix(" 0")] = (
            f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}, {versions}"
        )
    return found


def _library():
    if (why := library.why_absent()) is not None:
        return {"compiled library": f"absent: {why}"}
    built = library.build_info()
    cuda = f"{built['cuda']} for {', '.join(built['architectures'])}" if built["cuda"] else built["without_cuda"]
    return {
        "compiled library": str(library.LIBRARY),
        "built with": f"{built['compiler']}; for torch {built['stable_abi']} and later; {cuda}",
        "CPU kernels": _isa(library.cpu_isa()),
    }


def _isa(used):
    """`used`, and where the environment asks for another instruction set, why that one is not used."""
    asked = env.CPU_ISA
    if asked in (None, "", used):
        return used
    known = asked in env.INSTRUCTION_SETS
    why = "this CPU, its system or the compiler of the library does not have it" if known else "no such instruction set"
    return f"{used}, not {asked}: {why}"
