"""The CUDA plane convolution on the emulator, and its lists of products: built by g++, called by ctypes."""

import ctypes
import functools
from typing import NamedTuple

import torch
from conv_emulated import DTYPES, POINTERS, RESNET34, Call, sizes
from emulator import build

HEADER, RECORD, PLACES = 8, 16, 4  # integers of hopper/plane/plan.h
SLOTS = 12  # of the ring of planes


@functools.cache
def library():
    lib = ctypes.CDLL(str(build.c_library("plane_api", "hopper/plane/*.cu")))
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


def convolve(x, weight, norm, residual, out, conv, eps=0.0, *, gradient=False, places=4, cluster=1, relu=True, seed=0,
             policy=-1, multiprocessors=3):  # fmt: skip
    """norm: mean, var, weight, bias of one dtype, or four times None: none."""
    tensors = [x, weight, *norm, residual, out]
    pointers = {name: None if t is None else t.data_ptr() for name, t in zip(POINTERS, tensors, strict=True)}
    params = next((t.dtype for t in norm if t is not None), torch.float32)
    call = Call(dtype=DTYPES[x.dtype], param_dtype=DTYPES[params], eps=eps, activation=int(relu), seed=seed, policy=policy,
                **pointers, **conv)  # fmt: skip
    if (why := library().conv_plane(ctypes.byref(call), gradient, places, cluster, multiprocessors)) is not None:
        raise RuntimeError(why.decode())


def spots(conv, gradient=False, places=4, cluster=1):
    """Of every step and rank (group, first image, first channel)."""
    call = ctypes.byref(Call(**conv))
    steps = library().plane_spots(call, gradient, places, cluster, None, ctypes.c_int64(0))
    found = (ctypes.c_int * (3 * steps * cluster))()
    library().plane_spots(call, gradient, places, cluster, found, ctypes.c_int64(len(found)))
    triples = [tuple(found[i : i + 3]) for i in range(0, len(found), 3)]
    return [triples[i : i + cluster] for i in range(0, len(triples), cluster)]


# What the prediction assumes of an H100 or H200: multiprocessors, clocks a second, bytes a clock that one of them gets from
# L2, multiplications a clock at 788 TFLOP/s, clocks in which a tile fills its rings and is written besides its bytes.
PROCESSORS, CLOCK, L2, MACS, LATENCY = 132, 1.76e9, 28, 1696, 2500


def predicted(conv, gradient=False, places=4, residual=True, cluster=1):
    """(TFLOP/s of the nominal work, tiles, share of the nominal products that are multiplied) by a model: every tile takes
    the longer of its products and its copies, a block its tiles one after the other; a cluster brings each tap once."""
    read, written = (conv["k"], conv["c"]) if gradient else (conv["c"], conv["k"])
    rows = groups(conv, gradient, places)
    images, blocks = -(-conv["n"] // (64 * cluster)), -(-written // 128)
    clocks, products = [], 0
    for group in rows:
        count = sum(plane >= 0 for record in group.records for plane in record.read)
        steps = read // 64
        multiply = steps * count * 64 * 128 * 64 / MACS
        pixels = sum(pixel >= 0 for pixel in group.pixels)
        copied = steps * (group.planes * 8192 + len(group.records) * 16384 / cluster) + (1 + residual) * pixels * 16384
        clocks += [max(multiply, copied / L2) + LATENCY] * (images * blocks)
        products += count
    side_by_side = min(PROCESSORS // cluster, len(clocks))
    longest = max(sum(clocks[i::side_by_side]) for i in range(side_by_side))
    nominal = conv["p"] * conv["q"] * conv["r"] * conv["s"]
    flop = 2 * conv["n"] * nominal * conv["c"] * conv["k"]
    return flop / (longest / CLOCK) / 1e12, len(clocks) * cluster, products / nominal


# What the columns show: places and cluster of a convolution, or the gradient's; pairs where there are two groups of images.
COLUMNS = {"four pixels": (4, 1), "two": (2, 1), "gradient": None, "four, pairs": (4, 2), "two, pairs": (2, 2)}


def table(batches=(64, 256)):
    """Predictions for ResNet-34 as docs/design/plane.md shows them: python tests/support/plane_emulated.py"""
    columns = [(what, n) for n in batches for what in COLUMNS if n > 64 or "pairs" not in what]
    print("| c, k, kernel, stride, size | products | " + " | ".join(f"{what}, {n}" for what, n in columns) + " |")
    print("|---" * (2 + len(columns)) + "|")
    for c, k, r, stride, size in RESNET34:
        if k < 128:
            continue
        cells, share = [], 0.0
        for what, n in columns:
            conv = sizes((n, c, size, size), (k, c, r, r), stride, r // 2)
            if COLUMNS[what] is not None:
                places, cluster = COLUMNS[what]
                tflops, _, share = predicted(conv, places=places, residual=stride == 1, cluster=cluster)
            elif c < 128:
                cells.append("-")
                continue
            else:
                tflops = predicted(conv, gradient=True, residual=False)[0]
            cells.append(f"{tflops / 788:.0%}")
        print(f"| {c}, {k}, {r}x{r}, {stride}, {size} | {share:.0%} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    table()
