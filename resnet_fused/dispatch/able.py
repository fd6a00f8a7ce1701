"""Whether a backend runs an op on a device. A backend that `proves` its kernels runs those that were found right there
(measure/trust)."""

import torch

from ..kernels import gpu
from ..measure.trust import verdicts
from ..measure.trust.families import name_of


def why_not(backend, op, device, config=None):
    """Why `backend` does not run `op` on a torch.device, or None. The first question about a CUDA device checks its
    kernels there, which takes some seconds."""
    if op not in backend.kernels:
        return f"{backend.name} has no kernel for {op}"
    if (why := backend.why_not(device)) is not None or not backend.proves or backend.simulated == device.type:
        return why
    return verdicts.why_not(backend, name_of(op, config), device)


def able(backend, op, device):
    """Whether `backend` runs `op` on a torch.device."""
    return backend.takes(device.type) and why_not(backend, op, device) is None


def worth_measuring(backend, op, device, convolution=None):
    """Whether `backend` runs `op` on a torch.device without simulation, and may be the fastest for this convolution."""
    if backend.simulated == device.type or not able(backend, op, device):
        return False
    return convolution is None or (backend.refusal(op, convolution) is None and backend.suits(op, convolution))


def configurations(backend, op, convolution, device):
    """The launch configurations of `backend` that are worth a measurement on a torch.device."""
    found = backend.configurations(op, convolution)
    return [config for config in found if why_not(backend, op, device, config) is None]


def devices_of(backend):
    """The devices of this machine whose tensors `backend` takes; where there is none, the device that it is made for."""
    found = [device for device in (torch.device("cpu"), *gpu.devices()) if backend.takes(device.type)]
    return found or [torch.device(backend.device)]


def why_not_here(backend):
    """Why `backend` runs on no device of this machine, or None."""
    reasons = [backend.why_not(device) for device in devices_of(backend)]
    return None if None in reasons else "; ".join(dict.fromkeys(reasons))


def state(backend, device=None):
    """Why `backend` does not run on a torch.device (None: on any of this machine), or "available" and what is refused."""
    if device is not None and not backend.takes(device.type):
        return f"it takes no {device.type} tensors"
    if (why := why_not_here(backend) if device is None else backend.why_not(device)) is not None:
        return why
    refused = []
    for one in devices_of(backend) if device is None else [device]:
        if backend.proves and backend.why_not(one) is None:
            found = verdicts.known(backend, one).items()
            refused += [f"{family} is refused on {one}: {why}" for family, why in found if why is not None]
    return "; ".join(["available", *refused])
