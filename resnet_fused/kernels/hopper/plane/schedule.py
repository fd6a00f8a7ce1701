"""What the convolutions for Hopper share, and the convolutions that the plane convolution (cuda.py) runs.

The plane convolution views x as a matrix [N, H * W * C], and a tile holds output pixel (p, q) of many images. A tap
then reads one dense block [images, channels] at column (h * W + w) * C + c, which the hardware copies by itself (TMA).
A tap in the padding is left out instead of being multiplied by zeros: 18 % of the products at 7x7, 9 % at 14x14
(computed).

All functions but `why_not` and `refuse_capture` are pure, so tests need no GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ... import cuda, gpu

DEPTH = 64  # channels of one step: 128 bytes, the widest swizzle of shared memory
LEAST = 128  # output channels; a tile with half of them would load as much and multiply half as much
SUITS = 64  # with fewer images most rows of a tile are empty


class Geometry(NamedTuple):
    """A convolution without its batch. Pairs are (vertical, horizontal)."""

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@gpu.per_device
def why_not(device):
    """Why a torch.device cannot run these kernels, or None."""
    if (why := cuda.why_not(device)) is not None:
        return why
    if (found := torch.cuda.get_device_capability(device)) != (9, 0):
        return f"the Hopper kernels need compute capability 9.0, this is {found[0]}.{found[1]}"
    return None


def refusal(op, convolution):
    """Why the plane kernel cannot run a `shapes.Convolution`, or None. The kernel takes any stride, padding and
    dilation."""
    x, weight, dtype, *_, groups = convolution
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the plane kernel multiplies float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if groups != 1:
        return f"the plane kernel takes one group, not {groups}"
    for name, channels in (("input", x[1]), ("output", weight[0])):
        if channels % DEPTH:
            return f"the plane kernel takes {name} channels in multiples of {DEPTH}, not {channels}"
    if weight[0] < LEAST:
        return f"the plane kernel takes output channels from {LEAST} on, not {weight[0]}"
    if max(x[1] * x[2] * x[3], weight[0] * x[2] * x[3], weight[1] * weight[2] * weight[3]) >= 2**31:
        return f"the plane kernel counts the elements of an image in 32 bits, too few for {tuple(x)}"
    return None


def suits(op, convolution):
    """Whether the plane kernel is worth measuring: images must fill a tile, and neighbouring pixels must share input.
    The pixels of a 1x1 filter share none."""
    x, weight, *_ = convolution
    return x[0] >= SUITS and weight[2] * weight[3] > 1


def configurations(op, convolution):
    """Launch configurations worth measuring beside the default. A cluster needs two groups of 64 images."""
    return [{"places": 2}] + [{"cluster": 2}, {"places": 2, "cluster": 2}] * (convolution.x[0] > 64)


def refuse_capture(device):
    """Raises RuntimeError while a CUDA graph is captured: a graph cannot hold the copy of a table."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the plane kernel meets this shape for the first time: run it once before the graph's capture"
        )


def dense(t):
    """`t` where the hardware can copy from it (its address is a multiple of 16 bytes) or where it is None, else a copy
    of `t`."""
    return t if t is None or t.device.type == "meta" or t.data_ptr() % 16 == 0 else t.clone()
