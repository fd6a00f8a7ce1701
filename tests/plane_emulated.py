"""The CUDA plane convolution on the emulator, and its lists of products: built by g++, called by ctypes."""

import ctypes
import functools
from typing import NamedTuple

import torch
from conv_emulated import DTYPES, POINTERS, Call
from emulator import build

HEADER, RECORD, PLACES = 8, 16, 4  # integers of conv_plane_plan.h
SLOTS = 12  # of the ring of planes


@functools.cache
def library():
    lib = ctypes.CDLL(str(build.c_library("plane_api", "conv_plane_sm90a.cu")))
    for name in ("plane_table", "plane_refusal", "conv_plane"):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.plane_groups.restype = ctypes.c_int64
    return lib


class Record(NamedTuple):
    tap: int
    loaded: list  # input pixels
    read: list  # of each place the plane, or -1
    freed: list  # planes


class Group(NamedTuple):
    pixels: list  # of each place the output pixel, or -1
    records: list
    planes: int


def groups(conv, gradient=False, places=4):
    """The table of a convolution (conv_emulated.sizes), read back."""
    size, call = ctypes.c_int64(), Call(**conv)
    assert library().plane_table(ctypes.byref(call), gradient, places, None, 0, ctypes.byref(size)) is None
    table = (ctypes.c_int * size.value)()
    library().plane_table(ctypes.byref(call), gradient, places, table, size, ctypes.byref(size))
    count = library().plane_groups(ctypes.byref(call), gradient, places)
    records = [list(table[i : i + RECORD]) for i in range(count * HEADER, len(table), RECORD)]
    records = [Record(r[0], r[4 : 4 + r[1]], r[8:12], r[12 : 12 + r[2]]) for r in records]
    headers = [table[i * HEADER : (i + 1) * HEADER] for i in range(count)]
    assert sum(h[1] for h in headers) == len(records) and all(h[7] == 0 for h in headers)
    return [Group(list(h[2:6]), records[h[0] : h[0] + h[1]], h[6]) for h in headers]


def refusal(dtype, conv, gradient=False, capability=(9, 0)):
    return library().plane_refusal(ctypes.byref(Call(dtype=DTYPES[dtype], **conv)), gradient, *capability).decode()


def convolve(x, weight, norm, residual, out, conv, eps=0.0, *, gradient=False, places=4, relu=True, seed=0, policy=-1,
             multiprocessors=3):  # fmt: skip
    """norm: mean, var, weight, bias of one dtype, or four times None: none."""
    tensors = [x, weight, *norm, residual, out]
    pointers = {name: None if t is None else t.data_ptr() for name, t in zip(POINTERS, tensors, strict=True)}
    params = next((t.dtype for t in norm if t is not None), torch.float32)
    call = Call(dtype=DTYPES[x.dtype], param_dtype=DTYPES[params], eps=eps, relu=relu, seed=seed, policy=policy,
                **pointers, **conv)  # fmt: skip
    if (why := library().conv_plane(ctypes.byref(call), gradient, places, multiprocessors)) is not None:
        raise RuntimeError(why.decode())
