"""The "plane" convolutions for Hopper: which ones they are, which taps an output pixel has, in which order tiles run.

x is seen as a matrix [N, H * W * C] and a tile holds output pixel (p, q) of many images, so a tap reads one dense block
[images, channels] at column (h * W + w) * C + c: a copy the hardware makes by itself (TMA). A tap in the padding is left
out instead of multiplied by zeros: 18 % of the products at 7x7, 9 % at 14x14 (computed).
Stride and dilation change columns only.

Pure functions: the schedule is tested without a GPU.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from ...triton.schedule import SMS, cdiv

DEPTH = 64  # channels of one step: 128 bytes, the widest swizzle of shared memory
SUITS = 64  # images below which most rows of a tile are empty
FIELDS = 8  # of a row of `table`


class Geometry(NamedTuple):
    """A convolution without its batch; pairs are (vertical, horizontal)."""

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Pixel(NamedTuple):
    """Output pixel (p, q) and its taps inside of the input: rows r0 to r1 - 1, columns s0 to s1 - 1 of the filter."""

    p: int
    q: int
    r0: int
    r1: int
    s0: int
    s1: int

    @property
    def taps(self):
        return (self.r1 - self.r0) * (self.s1 - self.s0)


@functools.cache
def without_hopper():
    """Why the GPU that is there is none for these kernels, or None."""
    if torch.cuda.is_available() and (found := torch.cuda.get_device_capability())[0] != 9:
        return f"the Hopper kernels need compute capability 9.0, this is {found[0]}.{found[1]}"
    return None


def refusal(x, weight, dtype, groups, least=DEPTH):
    """Why a plane kernel cannot take x [N, C, H, W] and weight [K, C, R, S] (shapes) in `dtype`, or None."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the plane kernel multiplies float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if groups != 1:
        return f"the plane kernel takes one group, not {groups}"
    for name, channels in (("input", x[1]), ("output", weight[0])):
        if channels % DEPTH:
            return f"the plane kernel takes {name} channels in multiples of {DEPTH}, not {channels}"
    if weight[0] < least:
        return f"the plane kernel takes output channels from {least} on, not {weight[0]}"
    if max(x[1] * x[2] * x[3], weight[0] * x[2] * x[3], weight[1] * weight[2] * weight[3]) >= 2**31:
        return f"the plane kernel counts the elements of an image in 32 bits, too few for {tuple(x)}"
    return None


def gradient_refusal(grad, turned, dtype, stride, groups, least=DEPTH):
    """As `refusal`, of the gradient of a convolution's input from `grad` [N, K, P, Q], with a weight [C, K, R, S]."""
    input_sized = (*grad[:2], grad[2] * stride[0], grad[3] * stride[1])
    return refusal(input_sized, turned, dtype, groups, least)


def suits(x, weight):
    """Whether the plane kernels are worth measuring: images fill a tile, and pixels have neighbours to share (a 1x1
    kernel reads each element once in any kernel)."""
    return x[0] >= SUITS and weight[2] * weight[3] > 1


class Side(NamedTuple):
    """Taps along one side of a filter: i of `count` is tap `tap + i * every`, and reads the input at `start + i * step` of
    output 0."""

    count: int
    tap: int
    every: int
    start: int
    step: int


def gradient_sides(kernel, stride, padding, dilation):
    """The Side of every remainder by `stride` of a position in the gradient of a convolution's input.

    Position stride * i + remainder gets from the gradient of the output at i + start + j * step, through the taps r with
    stride * output = position + padding - r * dilation: every one at stride 1, at stride 2 those of one parity, or none.
    """
    shared = math.gcd(stride, dilation)
    every, step = stride // shared, -(dilation // shared)
    found = []
    for remainder in range(stride):
        first = next(
            (r for r in range(min(kernel, every)) if (remainder + padding - r * dilation) % stride == 0), kernel
        )
        found.append(
            Side(cdiv(kernel - first, every), first, every, (remainder + padding - first * dilation) // stride, step)
        )
    return found


def within(start, step, count, size):
    """(first, end) of the i below `count` whose start + i * step lies inside of `size`; step may be negative."""
    if step < 0:
        start, step = size - 1 - start, -step
    first, end = max(0, cdiv(-start, step)), min(count, cdiv(size - start, step))
    return (first, end) if first < end else (0, 0)


def inside(position, size, kernel, stride, padding, dilation):
    """(first, end) of the taps along one side of the filter that output `position` finds inside of an input of `size`."""
    return within(position * stride - padding, dilation, kernel, size)


def pixels(geometry):
    """Every output pixel once, those with the most taps first: what a wave ends with is then the smallest work."""
    rows, columns = (
        [inside(i, g[0], g[2], g[3], g[4], g[5]) for i in range(g[1])] for g in zip(*geometry, strict=True)
    )
    found = [Pixel(p, q, *rows[p], *columns[q]) for p in range(geometry.out[0]) for q in range(geometry.out[1])]
    return sorted(found, key=lambda pixel: -pixel.taps)  # stable: neighbours stay together and share input in L2


def table(geometry):
    """`pixels` as int32 [P * Q, 8] for a kernel: p * Q + q, taps, columns of taps, r0, s0, the input row and column of
    tap (r0, s0), and a zero."""
    rows = [
        (
            pixel.p * geometry.out[1] + pixel.q, pixel.taps, max(1, pixel.s1 - pixel.s0), pixel.r0, pixel.s0,
            pixel.p * geometry.stride[0] - geometry.padding[0] + pixel.r0 * geometry.dilation[0],
            pixel.q * geometry.stride[1] - geometry.padding[1] + pixel.s0 * geometry.dilation[1],
            0,
        )
        for pixel in pixels(geometry)
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32)


def gradient_table(geometry):
    """As `table`, for the gradient of a convolution's input: its pixels, and the taps by which they get from the gradient
    of the output. r0, s0 count in the filter; from tap to tap it is `gradient_sides`' `every` further."""
    found = []
    for size, out, kernel, stride, padding, dilation in zip(*geometry, strict=True):
        sides = gradient_sides(kernel, stride, padding, dilation)
        rows = [(position // stride, sides[position % stride]) for position in range(size)]
        found.append([(i, side, *within(i + side.start, side.step, side.count, out)) for i, side in rows])
    rows = [
        (
            h * geometry.size[1] + w, (h1 - h0) * (w1 - w0), max(1, w1 - w0), v.tap + h0 * v.every, u.tap + w0 * u.every,
            i + v.start + h0 * v.step, j + u.start + w0 * u.step, 0,
        )
        for h, (i, v, h0, h1) in enumerate(found[0])
        for w, (j, u, w0, w1) in enumerate(found[1])
    ]  # fmt: skip
    return torch.tensor(sorted(rows, key=lambda row: -row[1]), dtype=torch.int32)


def refuse_capture(device):
    """Raises RuntimeError inside of a CUDA graph's capture: a graph cannot hold the copy of a table."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the plane kernel meets this shape for the first time: run it once before the graph's capture"
        )


def dense(t):
    """`t` where the hardware can copy from it (a multiple of 16 bytes, or nothing), else a copy that is."""
    return t if t is None or t.device.type == "meta" or t.data_ptr() % 16 == 0 else t.clone()


@functools.cache  # never given up: a CUDA graph may still read it
def table_on(geometry, device, gradient=False):
    """`table`, or `gradient_table`, on a device. Raises RuntimeError inside of a CUDA graph's capture, which cannot hold
    the copy."""
    refuse_capture(device)
    return (gradient_table if gradient else table)(geometry).to(device)


class Launch(NamedTuple):
    """Tiles of block_n images x block_k output channels at one pixel, shared out over `programs`."""

    programs: int
    image_blocks: int
    channel_blocks: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def alternatives(k):
    """Fields of `launch` worth measuring beside its default."""
    narrow = ({"block_k": 64}, {"block_k": 64, "num_stages": 4}) if k % 128 == 0 else ()
    return [{"num_stages": 4}, *narrow]


def launch(n, k, count, block_n=None, block_k=None, num_warps=None, num_stages=3):
    """The Launch for n images, k output channels and `count` output pixels; what is given is what was measured."""
    block_n = block_n or (128 if n > 64 else 64)
    block_k = block_k or (128 if k % 128 == 0 else 64)
    num_warps = num_warps or (8 if block_n * block_k == 128 * 128 else 4)
    image_blocks, channel_blocks = cdiv(n, block_n), k // block_k
    tiles = image_blocks * channel_blocks * count
    # Two programs a multiprocessor: the epilogue of one runs beside the products of the other.
    return Launch(min(tiles, 2 * SMS), image_blocks, channel_blocks, block_n, block_k, num_warps, num_stages)
