"""The emulator as a backend of the dispatcher: the CUDA kernels, run on CPU tensors."""

import functools

import torch

from resnet_fused import dispatch

from . import build


@functools.cache
def _why_not():
    if (why := build.why_not()) is not None:
        return why
    build.load()
    return None


def register():
    """Adds the backend "emulator". A library that does not compile is an error, never a skip."""
    dispatch.BACKENDS["emulator"] = dispatch.Backend(
        _why_not, lambda device: device == "cpu", lambda stem, op: getattr(torch.ops.resnet_fused_emu, op)
    )
