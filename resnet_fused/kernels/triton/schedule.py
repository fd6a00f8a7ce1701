"""From shape to launch configuration, in pure functions. Every tuned number of the Triton kernels stands here.

No function asks a device, so a configuration can be printed, tested and compiled for a GPU that this machine does not
have. The numbers are computed (registers and shared memory checked by ahead-of-time compilation, no GPU). A timing that
changes a number is written beside it, with device and date.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

# The largest GPU that the kernels aim at (H100/H200: 132 SMs). It is a constant instead of a device query: the split of
# a reduction, and so its rounding, is then the same on every GPU.
SMS = 132


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def pow2(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << (n - 1).bit_length()


def fp32_precision() -> str:
    """How torch would multiply in a float32 convolution at this moment: "tf32" or "ieee".

    `cudnn.conv.fp32_precision` is the resolved value: torch has already replaced "none" by `cudnn.fp32_precision` or
    `backends.fp32_precision`, and the older `cudnn.allow_tf32 = ...` writes into it. Reading `allow_tf32` instead
    raises once a program has set convolutions and RNNs differently.
    """
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


class Launch:
    num_warps: int
    num_stages = 3  # Triton's default; only loops around a matrix product are pipelined

    @property
    def options(self) -> dict:
        """Launch options of the kernel. FMA contraction is asked for by name: Triton has announced that its default
        will be off, and float32 IEEE convolutions would then take twice the instructions."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Flat(Launch):
    """A tensor as one row. Each program takes `block` elements."""

    grid: tuple[int]
    block: int
    num_warps: int


def flat(size: int, itemsize: int) -> Flat:
    # 32 bytes of each input per thread at 128 threads: two 16-byte loads in flight per tensor.
    block = max(128, min(4096 // itemsize, pow2(size)))
    return Flat((cdiv(size, block),), block, num_warps=4)


@dataclass(frozen=True)
class Tiles(Launch):
    """Covers [outer, channels, inner] by tiles of block_r positions x block_c channels.

    Positions run over `outer` if channels_last (inner == 1), else over `inner` within one `outer`. The fast axis of a
    tile is the axis that is contiguous in memory. A program works on one channel block and `steps` consecutive position
    tiles. Programs are numbered with the channel block fastest, so neighbouring programs read neighbouring memory.
    """

    channels_last: bool
    outer: int
    channels: int
    inner: int
    block_r: int
    block_c: int
    steps: int
    num_warps: int

    @property
    def tiles_per_plane(self) -> int:
        return 1 if self.channels_last else cdiv(self.inner, self.block_r)

    @property
    def position_tiles(self) -> int:
        return cdiv(self.outer, self.block_r) if self.channels_last else self.outer * self.tiles_per_plane

    @property
    def slices(self) -> int:
        return cdiv(self.position_tiles, self.steps)

    @property
    def channel_blocks(self) -> int:
        return cdiv(self.channels, self.block_c)

    @property
    def grid(self) -> tuple[int]:
        return (self.slices * self.channel_blocks,)


# Elements of a tile at 4 warps: 32 a thread, in reductions 16. A reduction carries two float32 sums per element: with 32
# elements it took 172 registers and spilled in NCHW float32 (Triton 3.9, sm_90, computed ahead of time, no GPU).
_TILE = 4096
_REDUCTION_TILE = 2048
# Programs of a reduction: 8 waves of one CTA per SM. More programs only make the merge of the partials longer.
_REDUCTION_PROGRAMS = 8 * SMS


def _least_padding(n: int, blocks: tuple[int, ...]) -> int:
    return min(blocks, key=lambda block: (cdiv(n, block) * block, -block))


def _tiles(outer: int, channels: int, inner: int, size: int) -> Tiles:
    if inner == 1:
        # 128 channels of fp16 are two full 128-byte lines. With C = 65 or 96 a narrower block has less padding.
        block_c = _least_padding(channels, (128, 64, 32)) if channels > 32 else pow2(channels)
        block_r = min(pow2(outer), size // block_c)
    else:
        shortest = max(64, size // min(pow2(channels), 64))
        block_r = min(pow2(inner), _least_padding(inner, (4 * shortest, 2 * shortest, shortest)), size)
        block_c = min(pow2(channels), size // block_r, 128)
    return Tiles(inner == 1, outer, channels, inner, block_r, block_c, steps=1, num_warps=4)


def elementwise(outer: int, channels: int, inner: int) -> Tiles:
    """One tile per program, for kernels that apply per-channel parameters."""
    return _tiles(outer, channels, inner, _TILE)


def reduction(outer: int, channels: int, inner: int) -> Tiles:
    """As many tiles per program as keep the GPU full, for per-channel sums."""
    tiles = _tiles(outer, channels, inner, _REDUCTION_TILE)
    slices = max(1, _REDUCTION_PROGRAMS // tiles.channel_blocks)
    return Tiles(**{**vars(tiles), "steps": cdiv(tiles.position_tiles, slices)})


@dataclass(frozen=True)
class Merge(Launch):
    """Second stage of a reduction: [slices, channels] partials, block_s x block_c at a time."""

    grid: tuple[int]
    block_s: int
    block_c: int
    num_warps: int


def merge(channels: int, block_s: int = 256) -> Merge:
    # 8 channels are one 32-byte sector. C = 64 then has 8 programs instead of 1. Few slices have the block of many: else
    # another batch size would need another kernel.
    block_c = min(8, pow2(channels))
    return Merge((cdiv(channels, block_c),), block_s, block_c, num_warps=4)


@dataclass(frozen=True)
class Conv(Launch):
    """An implicit matrix product [m x depth] @ [depth x k] per group.

    flat: the reduction runs over taps and channels as one axis (few channels). Otherwise it runs over blocks of
    channels and, within a block, over taps. `splits` programs share the `iterations` of block_d and write partial sums.
    """

    flat: bool
    m: int
    k: int
    groups: int
    block_m: int
    block_k: int
    block_d: int
    iterations: int
    splits: int
    num_warps: int
    num_stages: int

    @property
    def grid(self) -> tuple[int, int, int]:
        return (cdiv(self.m, self.block_m) * cdiv(self.k, self.block_k), self.groups, self.splits)

    @property
    def iterations_per_split(self) -> int:
        return cdiv(self.iterations, self.splits)


def conv(m: int, k: int, c: int, taps: int, groups: int, itemsize: int, precision: str) -> Conv:
    """The launch configuration for m output positions, k output and c input channels per group. precision matters for
    float32 only."""
    flat = c < 16
    block_m, block_k = 128, min(128, max(16, pow2(k)))
    ieee = itemsize == 4 and precision == "ieee"
    if ieee:
        # Plain FMA: operands go through registers, so registers limit the tile, not shared memory. With 8 warps a
        # thread takes 80 to 128 registers; with 4 warps up to 168, and it spills on sm_100 (computed ahead of time, no
        # GPU).
        block_m, block_k, block_d = 64, min(64, block_k), 16
    elif flat:
        # Each element has its own address here, and registers allow 64 bytes of depth with 8 warps. With 4 warps
        # float32 spills on sm_100 (computed ahead of time, no GPU).
        block_d = min(64 // itemsize, max(16, pow2(taps * c)))
    else:
        # A row has 128 bytes of depth for every dtype: that is the widest swizzle, 8 copies of 16 bytes. The depth is
        # at least 32 bytes, which is one product of the matrix unit in e4m3.
        block_d = max(32 // itemsize, min(128 // itemsize, pow2(c)))
    # Where there are too few tiles for the GPU, the tiles become smaller,
    if cdiv(m, block_m) * cdiv(k, block_k) * groups < SMS:
        block_k = min(64, block_k)
    tiles = cdiv(m, block_m) * cdiv(k, block_k) * groups
    if tiles < SMS:
        block_m = 64
        tiles = cdiv(m, block_m) * cdiv(k, block_k) * groups
    # and then the reduction is split too. Each program has at least 4 iterations: below that the pipeline's prologue
    # and the second kernel cost more than parallelism saves.
    iterations = cdiv(taps * c, block_d) if flat else taps * cdiv(c, block_d)
    splits = max(1, min(SMS // tiles, iterations // 4))
    splits = cdiv(iterations, cdiv(iterations, splits))  # no program is without work
    # A full tile takes 98304 bytes of shared memory either way: two blocks per SM on sm_90, one on sm_86 and sm_89.
    # e4m3 has eight warps, because registers hold its promoted sums twice: 128 x 64 takes 122 a thread, with four warps
    # 164, and 64 x 64 spills with four warps on sm_100 (Triton 3.9, computed ahead of time, no GPU).
    num_warps, num_stages = (8, 3) if block_k == 128 or ieee else (8 if flat or itemsize == 1 else 4, 4)
    return Conv(flat, m, k, groups, block_m, block_k, block_d, iterations, splits, num_warps, num_stages)


def conv_as(default: Conv, c: int, taps: int, config: dict) -> Conv:
    """`default` with the fields of `config` (block_m, block_k, block_d, splits, num_warps, num_stages), which a
    measurement found faster. c, taps: as for `conv`."""
    made = replace(default, **config)
    iterations = cdiv(taps * c, made.block_d) if made.flat else taps * cdiv(c, made.block_d)
    splits = max(1, min(made.splits, iterations))
    return replace(made, iterations=iterations, splits=cdiv(iterations, cdiv(iterations, splits)))


def conv_alternatives(default: Conv, itemsize: int) -> list[dict]:
    """Configurations worth measuring beside `default`, as the `config` of `conv_as`. The flat kernel and IEEE float32
    have none, because registers limit them (see `conv`)."""
    if default.flat or default.block_d * itemsize < 64:
        return []
    found = []
    for block_m, block_k, num_warps, num_stages in (
        (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 4), (128, 128, 8, 3), (128, 128, 8, 4), (64, 64, 4, 4),
        (64, 64, 4, 5), (64, 128, 4, 4), (64, 128, 8, 4), (256, 64, 8, 3), (64, 32, 4, 5),
    ):  # fmt: skip
        tiles = cdiv(default.m, block_m) * cdiv(default.k, block_k) * default.groups
        shared = num_stages * (block_m + block_k) * default.block_d * itemsize
        if block_k > max(16, pow2(default.k)) or shared > 224 << 10:
            continue
        for splits in (1, 2, 4, 8, 16):
            if splits == 1 or (tiles * splits <= 2 * SMS and default.iterations >= 4 * splits):
                config = {"block_m": block_m, "block_k": block_k, "num_warps": num_warps, "num_stages": num_stages}
                found.append(config | {"splits": splits})
    same = {key: getattr(default, key) for key in ("block_m", "block_k", "num_warps", "num_stages", "splits")}
    return [config for config in found if config != same]


def wide_offsets(block_m: int, pixels: int, x_image: int, weight: int) -> bool:
    """Whether an offset within the input of one tile needs 64 bits. A tile of block_m positions touches at most block_m
    // pixels + 2 images of x_image elements each. The padding reaches less than one image beyond them."""
    return max((block_m // pixels + 3) * x_image, weight) >= 2**31


@dataclass(frozen=True)
class ConvMerge(Launch):
    """Second stage of a split convolution: sums [splits, m, k] partials, one tile per program."""

    grid: tuple[int]
    block_m: int
    block_k: int
    num_warps: int


def conv_merge(m: int, k: int) -> ConvMerge:
    # Tiles are small: a split convolution is small itself, and this kernel should still use every SM.
    block_k = min(64, pow2(k))
    block_m = min(512 // block_k, pow2(m))
    return ConvMerge((cdiv(m, block_m) * cdiv(k, block_k),), block_m, block_k, num_warps=4)
