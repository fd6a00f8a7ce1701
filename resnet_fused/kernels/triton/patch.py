"""The "patch" convolutions for Hopper: which ones they are, and how their output is cut into tiles.

A tile is a patch of output pixels of one image, or of a few, x some channels. x stays [N, H, W, C] for the copy engine (TMA),
so a tap reads one block of it, shifted, and what lies in the padding comes as zeros: no address, no mask, any batch.

Pure functions: the schedule is tested without a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..hopper.plane.schedule import DEPTH
from .schedule import SMS, cdiv, pow2

PIECE = 8  # channels: the copy engine moves 16 bytes and counts strides in them
USEFUL = 0.7  # of the rows of all tiles, below which it is not worth measuring


def refusal(x, weight, dtype, stride, groups):
    """Why a patch kernel cannot take x [N, C, H, W] and weight [K, C, R, S] (shapes) in `dtype`, or None."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the patch kernel multiplies float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if groups != 1:
        return f"the patch kernel takes one group, not {groups}"
    for name, channels in (("input", x[1]), ("output", weight[0])):
        if channels % PIECE:
            return f"the patch kernel takes {name} channels in multiples of {PIECE}, not {channels}"
    if max(stride) > 1:
        if x[1] % DEPTH:  # a block that passes the last channel would read the next pixel's
            return (
                f"the patch kernel takes stride {max(stride)} with input channels in multiples of {DEPTH}, not {x[1]}"
            )
        for size, step in zip(x[2:], stride, strict=True):
            if size % step:
                return f"the patch kernel takes sizes that stride {step} divides, not {size}"
    # Tiles, and offsets in a pixel row of `stride` times the channels, are counted in 32 bits.
    if x[0] * x[2] * x[3] * cdiv(weight[0], DEPTH) >= 2**31 or max(x[1], weight[0]) * max(stride) >= 2**31:
        return f"the patch kernel counts tiles in 32 bits, too few for {tuple(x)}"
    return None


def gradient_refusal(grad, turned, dtype, groups):
    """As `refusal`, of the gradient of a convolution's input from `grad` [N, K, P, Q], with a weight [C, K, R, S]: it has
    the stride 1, whatever the convolution has."""
    return refusal(grad, turned, dtype, (1, 1), groups)


def suits(x, weight, stride):
    """Whether the patch kernel is worth measuring: most rows of its tiles hold pixels, there is a tile for at least every
    fourth multiprocessor, and pixels have neighbours to share (a 1x1 kernel reads each element once in any kernel)."""
    n, p, q = x[0], cdiv(x[2], stride[0]), cdiv(x[3], stride[1])
    made = launch(n, p, q, weight[0])
    useful = n * p * q / (made.tiles // made.channel_blocks * made.rows)
    return weight[2] * weight[3] > 1 and useful >= USEFUL and 4 * made.tiles >= SMS


def patch(n, p, q, rows):
    """(images, height, width) of a patch of `rows` output pixels, powers of two: those with the fewest patches, of these
    with the fewest images (neighbours share lines of L2), of these the widest (whose rows are one run in memory)."""
    sides = [1 << i for i in range(rows.bit_length())]
    shapes = [(rows // (b * a), b, a) for b in sides for a in sides if a * b <= rows]
    return min(
        shapes, key=lambda shape: (cdiv(n, shape[0]) * cdiv(p, shape[1]) * cdiv(q, shape[2]), shape[0], -shape[2])
    )


class Launch(NamedTuple):
    """Patches (`patch`) x block_k output channels; `blocks`: how many patches along n, p, q."""

    patch: tuple[int, int, int]
    blocks: tuple[int, int, int]
    channel_blocks: int
    block_k: int
    num_warps: int
    num_stages: int

    @property
    def rows(self):
        return self.patch[0] * self.patch[1] * self.patch[2]

    @property
    def slices(self):
        return self.blocks[0] * self.blocks[1] * self.blocks[2]

    @property
    def tiles(self):
        return self.slices * self.channel_blocks

    @property
    def programs(self):
        # Two a multiprocessor: the epilogue of one runs beside the products of the other.
        return min(self.tiles, 2 * SMS)


def launch(n, p, q, k, rows=None, block_k=None, num_warps=None, num_stages=None):
    """The Launch for n images of p x q output pixels and k channels; what is given is what was measured."""
    wide = 128 if k % 128 == 0 else max(16, min(64, pow2(k)))
    for most, channels in ((128, wide), (128, min(64, wide)), (64, min(64, wide))):  # smaller where tiles are few
        shape = patch(n, p, q, rows or most)
        blocks = tuple(cdiv(size, side) for size, side in zip((n, p, q), shape, strict=True))
        made = Launch(shape, blocks, cdiv(k, block_k or channels), block_k or channels, 4, 4)
        if made.tiles >= SMS:
            break
    large = made.rows * made.block_k >= 128 * 128
    return made._replace(num_warps=num_warps or (8 if large else 4), num_stages=num_stages or (3 if large else 4))


def alternatives(n, p, q, k):
    """Fields of `launch` worth measuring beside its default."""
    made = launch(n, p, q, k)
    found = [{"num_stages": 7 - made.num_stages}]
    if made.block_k == 128:
        found += [{"block_k": 64}]
    elif made.rows == 128 and made.block_k == 64:
        found += [{"rows": 256}]  # weights are read half as often
    return found
