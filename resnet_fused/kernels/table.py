"""The backends: why one cannot run here, which devices it takes, and how its kernels are found."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import env, library
from .hopper.plane import cuda as cuda_plane
from .hopper.plane import schedule as plane
from .hopper.strip import cuda as cuda_strip


class Backend(NamedTuple):
    """How a backend is asked: `why_not()` says why it cannot run here (None: it can), `takes(device_type)`, and
    `kernel(stem, op)` is the function that launches `op`."""

    why_not: Callable[[], str | None]
    takes: Callable[[str], bool]
    kernel: Callable | None


@functools.cache
def _without_triton():
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() and not env.TRITON_INTERPRET:
        return "no CUDA device (TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly)"
    return None


@functools.cache
def _without_cuda():
    if (why := library.why_absent()) is not None:
        return why
    if not library.has_cuda():
        return "the compiled library has no CUDA part (nvcc was not found when it was built)"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _compiled_kernel(stem, op):
    kernel = getattr(library.namespace(), op)
    # The stable ABI cannot read torch's flags, so the library is told.
    return functools.partial(kernel, allow_tf32=tf32_allowed()) if op.startswith("conv") else kernel


def _takes_triton(device):
    return device == "cuda" or (device == "cpu" and env.TRITON_INTERPRET)


def _triton_kernel(stem, op):
    return getattr(importlib.import_module(f"{__package__}.triton.{stem}"), op)


def _cuda_plane_kernel(stem, op):
    return functools.partial(getattr(cuda_plane, op), library.namespace())


def _cuda_strip_kernel(stem, op):
    return functools.partial(getattr(cuda_strip, op), library.namespace())


# A backend proven elsewhere (the emulator of the tests) is added here by its owner.
BACKENDS = {
    "cuda": Backend(_without_cuda, lambda device: device == "cuda", _compiled_kernel),
    "triton": Backend(_without_triton, _takes_triton, _triton_kernel),
    "cuda_plane": Backend(
        lambda: _without_cuda() or plane.without_hopper(),
        lambda device: device == "cuda",
        _cuda_plane_kernel,
    ),
    "cuda_strip": Backend(
        lambda: _without_cuda() or plane.without_hopper(),
        lambda device: device == "cuda",
        _cuda_strip_kernel,
    ),
    "native": Backend(library.why_absent, lambda device: device == "cpu", _compiled_kernel),
    "torch": Backend(lambda: None, lambda device: True, None),
    "eager": Backend(lambda: None, lambda device: True, None),
}

# Backends whose convolutions take a tile and a number of slices by name (csrc/cuda/conv/choice.h).
TILED = ("cuda", "emulator")


def tiles(text):
    """Launch configurations from what the library's conv_choices says: a line is "<tile> <splits>", or that and "cluster"."""
    found = []
    for tile, splits, *cluster in map(str.split, text.splitlines()):
        found.append({"tile": tile, "splits": int(splits)} | ({"cluster": True} if cluster else {}))
    return found


# The ops that a backend of NARROW has kernels for.
NARROW_OPS = ("conv_bn_relu", "conv_input_grad")


class Narrow(NamedTuple):
    """A backend with kernels for some convolutions. Convolutions are shapes of x and weight; of `conv_input_grad` those of
    the output's gradient and of the weight with its channels exchanged."""

    others: str  # the backend that runs everything else
    refusal: Callable  # (x, weight, dtype, stride, padding, dilation, groups) -> why no kernel takes it, or None
    suits: Callable  # (x, weight): whether it is worth a measurement


NARROW = {
    "cuda_plane": Narrow("cuda", plane.refusal, plane.suits),
    "cuda_strip": Narrow("cuda", cuda_strip.refusal, cuda_strip.suits),
}


def tf32_allowed():
    """Whether torch would let a float32 convolution use TF32, by its flags at this moment."""
    precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    if precision in ("tf32", "ieee"):
        return precision == "tf32"
    return torch.backends.cudnn.allow_tf32
