"""The emulator as a backend of the dispatcher: the CUDA kernels, run on CPU tensors."""

import functools

import torch

from resnet_fused import dispatch
from resnet_fused.kernels import cuda

from . import build

NAME = "emulator"


@functools.cache
def _why_not(device):
    if (why := build.why_not()) is not None:
        return why
    build.load()
    return None


def _library():
    return torch.ops.resnet_fused_emu


BACKEND = dispatch.Backend(
    NAME,
    "cpu",
    _why_not,
    cuda.kernels(_library),
    configurations=functools.partial(cuda.configurations, _library, "cpu"),
    simulated="cpu",
)


def register():
    """Adds the backend "emulator". A library that does not compile is an error, never a skip."""
    dispatch.BACKENDS[NAME] = BACKEND


def measured(monkeypatch):
    """Adds the backend for one test, as if it ran on a device of its own, so that it is measured. Returns why it cannot
    run, or None."""
    monkeypatch.setitem(dispatch.BACKENDS, NAME, BACKEND._replace(simulated=None))
    return BACKEND.why_not(torch.device("cpu"))
