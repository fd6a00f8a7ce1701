"""The gradient of a convolution's weight: which convolutions the kernel takes, and how its sums over pixels are cut.

dW [K, R * S * C] = dy^T [K, pixels] @ patches [pixels, R * S * C], cut in tiles of channels x columns and in slices of pixels,
whose float32 sums a second kernel adds. Pure functions: the schedule is tested without a GPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .schedule import SMS, cdiv, pow2

# What an H100 is taken for (predicted: docs/conv.md): products and bytes from L2 a clock and multiprocessor, bytes of memory a
# clock, clocks of a program besides its products, and of the second kernel.
_PRODUCTS, _L2, _MEMORY, _PROGRAM, _SECOND = 2048, 28, 1900, 2500, 3000
# Bytes of the slices' sums, beyond which no second slice is cut.
WORKSPACE = 64 << 20
# Pixels that one sum runs over, unless WORKSPACE forbids: a float32 sum of n values is off by 0.2 * sqrt(n) of its last
# place, and tensor cores cut what they add instead of rounding it, 2**-24 for each 16 pixels.
LONGEST = {2: 16384, 4: 4096}
# Bytes of shared memory for a pipeline that every GPU since sm_80 has, and that Hopper has.
_ANYWHERE, _MOST = 98304, 224 << 10


def refusal(x, weight, groups):
    """Why the kernel cannot take x [N, C, H, W] and weight [K, C / groups, R, S] (shapes), or None."""
    if groups != 1:
        return f"the weight gradient's kernel takes one group, not {groups}"
    if weight[0] * weight[1] * weight[2] * weight[3] >= 2**31 or x[2] * x[3] >= 2**30:
        return f"the weight gradient's kernel counts in 32 bits, too few for {tuple(x)} and {tuple(weight)}"
    return None


class Launch(NamedTuple):
    """Tiles of block_k channels x block_n columns; a slice is `steps` steps of block_m pixels."""

    k_blocks: int
    n_blocks: int
    slices: int
    steps: int
    block_m: int
    block_k: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def programs(self):
        return self.k_blocks * self.n_blocks * self.slices

    def workspace(self, k, columns):
        """Bytes of the slices' sums."""
        return 4 * self.slices * k * columns


# What a measured configuration may set.
FIELDS = ("block_m", "block_k", "block_n", "num_warps", "num_stages", "slices")


class Merge(NamedTuple):
    """Second kernel: block_e values of the gradient, block_s slices at a time."""

    programs: int
    block_s: int
    block_e: int


def merge(slices, values):
    # 2048 values a program, 16 a thread: all loads of an iteration are in flight together.
    block_s = min(32, pow2(slices))
    return Merge(cdiv(values, 2048 // block_s), block_s, 2048 // block_s)


def _shapes(k, columns, c, itemsize, ieee):
    """(block_m, block_k, block_n, num_warps, num_stages) that may be worth it. Those of more than _ANYWHERE are only
    measured."""
    block_k = max(16, min(128, pow2(k)))
    alone = c * itemsize % 16 != 0  # every element has an address of its own, and none is copied 16 bytes at a time
    if ieee:  # plain multiply-add: operands go through registers (launch.conv)
        return [(16, min(64, block_k), 32 if alone else 64, 8, 3)]
    if alone:
        return [(32, min(64, block_k), 64, 8, 3)]
    made, deep = [], 128 // itemsize
    if itemsize == 2 and columns > 128:
        made += [(32, block_k, 256, 8, 4), (deep, block_k, 256, 8, 3)]
    if columns > 64:
        made.append((deep, block_k, 128, 8 if block_k == 128 else 4, 3))
    return [*made, (deep, block_k, 64, 4, 3)]


def _shared(shape, itemsize):
    block_m, block_k, block_n, _, num_stages = shape
    return num_stages * block_m * (block_k + block_n) * itemsize


def _ieee(itemsize, precision):
    return itemsize == 4 and precision == "ieee"


def _fewest(m, k, columns, itemsize):
    """Slices that LONGEST asks for and WORKSPACE allows."""
    return max(1, min(cdiv(m, LONGEST[itemsize]), WORKSPACE // (4 * k * columns)))


def _clocks(made, k, columns, itemsize):
    """Predicted: waves of the slices' steps, then the trip of their sums through memory."""
    multiply = made.block_m * made.block_k * made.block_n / _PRODUCTS
    width = made.k_blocks * made.n_blocks * made.block_k + made.k_blocks * columns  # columns past the last are not read
    load = made.block_m * width * itemsize / (made.k_blocks * made.n_blocks * _L2)
    first = cdiv(made.programs, SMS) * (made.steps * max(multiply, load) + _PROGRAM)
    return first + _SECOND + 2 * made.workspace(k, columns) / _MEMORY


def _cut(m, k, columns, shape, slices):
    block_m, block_k, block_n, num_warps, num_stages = shape
    steps = max(1, cdiv(cdiv(m, block_m), slices))
    slices = max(1, cdiv(m, steps * block_m))  # no program without work
    return Launch(
        cdiv(k, block_k), cdiv(columns, block_n), slices, steps, block_m, block_k, block_n, num_warps, num_stages
    )


@functools.lru_cache(maxsize=4096)
def launch(m, k, columns, c, itemsize, precision):
    """The Launch for m output pixels, k output and c input channels, columns = R * S * c; precision: of float32."""
    least = _fewest(m, k, columns, itemsize)
    most = max(least, min(4 * SMS, cdiv(m, 256), WORKSPACE // (4 * k * columns)))
    shapes = [
        s for s in _shapes(k, columns, c, itemsize, _ieee(itemsize, precision)) if _shared(s, itemsize) <= _ANYWHERE
    ]
    made = [_cut(m, k, columns, shape, slices) for shape in shapes for slices in range(least, most + 1)]
    return min(made, key=lambda one: _clocks(one, k, columns, itemsize))


def alternatives(m, k, columns, c, itemsize, precision):
    """Configurations worth measuring beside the default, as the `config` of `launch_as`: other tiles, for one, two and four
    programs a multiprocessor, and deeper pipelines where shared memory holds them."""
    default = launch(m, k, columns, c, itemsize, precision)
    least, found = _fewest(m, k, columns, itemsize), {}
    for shape in _shapes(k, columns, c, itemsize, _ieee(itemsize, precision)):
        tiles = cdiv(k, shape[1]) * cdiv(columns, shape[2])
        for stages in (shape[4], shape[4] + 1):
            for programs in (SMS, 2 * SMS, 4 * SMS):
                config = dict(zip(FIELDS, (*shape[:4], stages, max(least, programs // tiles)), strict=True))
                one = launch_as(default, m, k, columns, config)
                if one.workspace(k, columns) <= WORKSPACE and _shared((*shape[:4], stages), itemsize) <= _MOST:
                    found.setdefault(one, config)
    return [config for one, config in found.items() if one != default]


def launch_as(default, m, k, columns, config):
    """`default` with the FIELDS in `config`: what was measured."""
    *shape, slices = (config.get(field, getattr(default, field)) for field in FIELDS)
    return _cut(m, k, columns, shape, slices)
