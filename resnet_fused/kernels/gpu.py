"""Which CUDA device can run compiled code, asked for each device: a process may use GPUs of several kinds."""

import functools
import re

import torch

from . import library

LEAST = (8, 0)  # compute capability: bfloat16 and asynchronous copies


def numbered(device):
    """A torch.device with its index. A CUDA device without one is the current device."""
    if device.type != "cuda" or device.index is not None or not torch.cuda.is_available():
        return device
    return torch.device("cuda", torch.cuda.current_device())


def per_device(why_not):
    """The function `why_not(torch.device)`, remembered for each device."""
    remembered = functools.cache(why_not)

    @functools.wraps(why_not)
    def of(device):
        return remembered(device if device.index is not None else numbered(device))

    of.forget = remembered.cache_clear
    return of


def devices():
    """Every CUDA device that torch sees."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def why_no_device(device):
    """Why torch has no such CUDA device, or why it is too old for every kernel, or None."""
    if device.type != "cuda":
        return f"its kernels are for CUDA devices, not {device.type}"
    if not torch.cuda.is_available():
        return "no CUDA device"
    if (found := torch.cuda.get_device_capability(device)) < LEAST:
        return f"the kernels need compute capability {_dotted(LEAST)}, this device has {_dotted(found)}"
    return None


def why_not_library(device):
    """Why the compiled library, which has a CUDA part, cannot run on a CUDA device, or None."""
    built, driver = library.build_info(), torch._C._cuda_getDriverVersion()
    toolkit = int(re.search(r"\d+", built["cuda"])[0])
    if driver // 1000 < toolkit:
        found = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"the library was compiled by {built['cuda']}: the driver must know CUDA {toolkit}, it knows {found}"
    found = torch.cuda.get_device_capability(device)
    if not any(runs(architecture, found) for architecture in built["architectures"]):
        return f"the library was compiled for {', '.join(built['architectures'])}, this device is {_dotted(found)}"
    return None


def runs(architecture, capability):
    """Whether a device of this capability, such as (8, 6), runs code for one of the architectures of the build record:
    "8.0" runs on 8.0 to 8.9, "10.0f" as well within 10, "9.0a" on 9.0 alone, "8.0+PTX" and "PTX 80" on all later."""
    first = divmod(int(re.sub(r"\D", "", architecture)), 10)
    if re.search(r"\da", architecture):
        return capability == first
    return capability >= first and ("PTX" in architecture or capability[0] == first[0])


def _dotted(capability):
    return "{}.{}".format(*capability)
