"""The CUDA strip convolution on the emulator, and its plan: built by g++, called by ctypes."""

import ctypes
import functools
from typing import NamedTuple

import torch
from conv_emulated import DTYPES, POINTERS, Call
from emulator import build


@functools.cache
def library():
    lib = ctypes.CDLL(str(build.c_library("strip_api", "hopper/strip/*.cu")))
    for name in ("strip_refusal", "conv_strip"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


class Plan(NamedTuple):
    strips_w: int
    segments: int
    lines: int  # of a segment
    blocks: int
    places: list  # of each block (first image, first column, first line, lines)


def plan(conv, lines=0):
    """The plan of a convolution (conv_emulated.sizes), in segments of `lines` lines instead of its own choice."""
    numbers, call = (ctypes.c_int64 * 4)(), Call(**conv)
    library().strip_plan(ctypes.byref(call), lines, numbers, None, 0)
    places = (ctypes.c_int * (4 * numbers[3]))()
    library().strip_plan(ctypes.byref(call), lines, numbers, places, ctypes.c_int64(len(places)))
    return Plan(*numbers, [tuple(places[i : i + 4]) for i in range(0, len(places), 4)])


def refusal(dtype, conv, capability=(9, 0)):
    return library().strip_refusal(ctypes.byref(Call(dtype=DTYPES[dtype], **conv)), *capability).decode()


def convolve(x, weight, norm, residual, out, conv, eps=0.0, *, gradient=False, lines=0, relu=True, seed=0, policy=-1):
    """norm: mean, var, weight, bias of one dtype, or four times None: none."""
    tensors = [x, weight, *norm, residual, out]
    pointers = {name: None if t is None else t.data_ptr() for name, t in zip(POINTERS, tensors, strict=True)}
    params = next((t.dtype for t in norm if t is not None), torch.float32)
    call = Call(dtype=DTYPES[x.dtype], param_dtype=DTYPES[params], eps=eps, activation=int(relu), seed=seed, policy=policy,
                **pointers, **conv)  # fmt: skip
    if (why := library().conv_strip(ctypes.byref(call), gradient, lines)) is not None:
        raise RuntimeError(why.decode())
