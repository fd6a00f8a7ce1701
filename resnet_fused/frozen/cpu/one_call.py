"""A frozen network in one call of the compiled library, where every layer is one of its kernels (csrc/cpu/network/network.h).

Between two convolutions Python, its allocations and their page faults took 3 of 26 ms (ResNet-34, bfloat16, batch 8).
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from ...kernels import library
from ...modules.zero_pad import ZeroPadShortcut
from ..memory_plan import Plan
from . import amx
from .amx import Amx, AmxStem
from .convolutions import StemWithPool, WinogradF2, WinogradF2Taps, WinogradF4, WinogradF4Taps
from .direct import Direct

COPY, STEM, AMX_STEM, DIRECT, AMX, WINOGRAD, PAD, MEAN = range(8)  # StepKind
NONE, INPUT, OUTPUT = -1, -2, -3
LINE = 64
SHAPES = 16  # of inputs whose steps are remembered
PIECE = 7 << 19  # bytes of a map that stays in the caches: 4 images of 64 channels at 56x56 in float32
WINOGRADS = (WinogradF4, WinogradF4Taps, WinogradF2, WinogradF2Taps)
KINDS = {StemWithPool: STEM, AmxStem: AMX_STEM, Direct: DIRECT, Amx: AMX, **dict.fromkeys(WINOGRADS, WINOGRAD)}


def why_not(engine):
    """None, or which part of the network the library has no kernel for."""
    for site in engine._sites:
        if site.way not in KINDS:
            return f"{site.name} is run by {site.way.name}"
    model = engine._model
    pool = getattr(model.avgpool, "output_size", None)
    if type(model.avgpool) is not nn.AdaptiveAvgPool2d or pool not in (1, (1, 1)):
        return "avgpool is not an average over all pixels"
    if type(model.fc) is not nn.Linear:
        return f"fc is a {type(model.fc).__name__}"
    if engine._pool is not None and type(engine._pool) is not nn.Identity:
        return "maxpool is not the 3x3/2 of the paper"
    for block in engine._blocks:
        if block.projection is None and block.shortcut is not None and type(block.shortcut) is not ZeroPadShortcut:
            return f"a shortcut is a {type(block.shortcut).__name__}"
    return None


def own_way(site):
    """The fastest of the library's own ways that was measured for `site`, or None."""
    return next((way for way in site.ranking if way in KINDS), None)


class ByLayers:
    """The other way to run a network: layer by layer, each the fastest."""

    name = "layers"


class Whole:
    """`whole(x)` -> logits [N, classes] of an engine for which `why_not` is None. Thread-safe: a call takes an arena of its
    own, or makes one."""

    name = "whole"

    def __init__(self, engine):
        self.ops, self.engine, self.dtype = library.namespace(), engine, engine.dtype
        self.half = engine.dtype == torch.bfloat16
        fc = engine._model.fc
        weight = fc.weight.detach().to(self.dtype).contiguous()
        bias = torch.zeros(fc.out_features) if fc.bias is None else fc.bias.detach().float()
        self.head_way = Direct if amx.why_no_unit() else Amx
        head = getattr(self.ops, f"{self.head_way.unit}_pack")(weight.view(*weight.shape, 1, 1))
        tensors = [t for site in engine._sites for t in (site.run.weight, site.run.bias)] + [head, bias]
        starts, size = [], 0
        for t in tensors:
            starts.append(size)
            size += _lines(t.nbytes)
        self.constants = _aligned(size)
        self.ops.large_pages(self.constants)
        views = []
        for t, start in zip(tensors, starts, strict=True):
            views.append(self.constants[start : start + t.nbytes].view(t.dtype))
            views[-1].copy_(t.reshape(-1))
        for i, site in enumerate(engine._sites):
            site.run.weight, site.run.bias = views[2 * i : 2 * i + 2]  # one copy of each in memory
            site.constants = starts[2 * i : 2 * i + 2]
        self.head = starts[-2:]
        self.steps, self.arenas = {}, []  # {(shape, threads): steps}; memory that no call is using

    def __call__(self, x):
        out = torch.empty((x.shape[0], self.engine._model.fc.out_features), dtype=self.dtype)
        if x.shape[0] == 0:
            return out
        key = (x.shape, torch.get_num_threads())
        steps = self.steps.get(key)
        if steps is None:
            if len(self.steps) >= SHAPES:
                self.steps.clear()
            steps = self.steps[key] = _Steps(self, x.shape)
        arena = self._arena(steps.bytes)
        self.ops.frozen_network(x, self.constants, steps.numbers, arena, steps.activations, out)
        self.arenas.append(arena)
        return out

    def _arena(self, size):
        """Memory that no other call is using. Shapes share it, so that no more is kept than calls at once of the largest."""
        try:
            arena = self.arenas.pop()
        except IndexError:
            arena = None
        return arena if arena is not None and len(arena) >= size else torch.empty(size, dtype=torch.uint8)


class _Value(NamedTuple):
    """A map: a value of the memory plan, or INPUT or OUTPUT, the shape of an image, and which image of it comes first."""

    place: int
    channels: int
    height: int
    width: int
    first: int = 0

    @property
    def shape(self):
        return self[1:4]


class _Steps:
    """The steps for one shape of the input: `numbers` as csrc/cpu/network/network.h has them, `bytes` of an arena, the first
    `activations` of which are for maps."""

    def __init__(self, whole, shape):
        self.shape, self.images, self.plan, self.rows = tuple(shape), shape[0], Plan(), []
        engine = whole.engine
        blocks, images = _pieces(engine, self.shape, whole.dtype.itemsize)
        x = self._in_pieces(engine, blocks, images)
        for block in engine._blocks[blocks:]:
            x = self._block(block, x)
        x = self._simple(MEAN, x, x.channels)
        self._step(KINDS[whole.head_way], x, _Value(OUTPUT, engine._model.fc.out_features, 1, 1), constants=whole.head)
        self._settle(whole)

    def _settle(self, whole):
        """Values become bytes from the start of the arena."""
        starts, size = [], 0
        for elements in self.plan.sizes:
            starts.append(size)
            size += _lines(elements * whole.dtype.itemsize)

        def settled(value):
            if value is None or value.place < 0:
                return NONE if value is None else value.place
            slot, (_, *image) = self.plan.places[value.place]
            return starts[slot] + value.first * math.prod(image) * whole.dtype.itemsize

        rows = [[kind, *map(settled, values), *numbers] for kind, values, numbers in self.rows]
        self.numbers, self.activations = torch.tensor(rows, dtype=torch.int64), size
        self.bytes = size + whole.ops.frozen_network_workspace(self.numbers, whole.half)

    def _in_pieces(self, engine, blocks, images):
        """The stem and the first `blocks` blocks, so many images at a time: the map of all images."""
        image = _Value(INPUT, *self.shape[1:])
        if images == self.images:
            return self._beginning(engine, image, blocks)
        out = self._take(*_shape_after(engine, image.shape, blocks))
        for first in range(0, self.shape[0], images):
            self.images = min(images, self.shape[0] - first)
            self._beginning(engine, image._replace(first=first), blocks, out._replace(first=first))
        self.images = self.shape[0]
        return out

    def _beginning(self, engine, x, blocks, out=None):
        if KINDS[engine._stem.way] not in (STEM, AMX_STEM):
            x = self._simple(COPY, x, x.channels)
        before, x = x, self._convolution(engine._stem, x, out=None if blocks else out)
        if before.place != INPUT:
            self.plan.give_back(before.place)
        for block in engine._blocks[:blocks]:
            x = self._block(block, x, out if block is engine._blocks[blocks - 1] else None)
        return x

    def _step(
        self, kind, x, to, *, residual=None, constants=(0, 0), kernel=(1, 1), stride=1, padding=0, dilation=1,
        relu=False, m=0, taps=False,
    ):  # fmt: skip
        self.rows.append(
            (kind, (x, residual, to),
             (*constants, self.images, x.height, x.width, x.channels, to.channels, *kernel, stride, padding, dilation,
              relu, m, taps, x.first if x.place == INPUT else 0))
        )  # fmt: skip

    def _take(self, channels, height, width):
        return _Value(self.plan.take((self.images, channels, height, width)), channels, height, width)

    def _simple(self, kind, x, k, stride=1):
        out = self._take(k, *((1, 1) if kind == MEAN else (-(-x.height // stride), -(-x.width // stride))))
        self._step(kind, x, out, stride=stride)
        return out

    def _convolution(self, site, x, residual=None, out=None):
        """The result is written to `out`; without one over `residual`, which nobody needs afterwards."""
        conv, way = site.conv, site.way
        shape = _after(site, x.shape)
        if min(shape) < 1:
            raise ValueError(f"engine: x is {self.shape}: {site.name} has no output pixel")
        out = out or residual or self._take(*shape)
        kind = KINDS[way]
        m, taps = (way.m, way.taps) if kind == WINOGRAD else (0, False)
        self._step(
            kind, x, out, residual=residual, constants=site.constants, kernel=conv.kernel_size, stride=conv.stride[0],
            padding=conv.padding[0], dilation=conv.dilation[0], relu=site.relu, m=m, taps=taps,
        )  # fmt: skip
        return out

    def _block(self, block, x, result=None):
        shortcut, out = x, x
        if block.projection is not None:
            shortcut = self._convolution(block.projection, x)
        elif block.shortcut is not None:
            shortcut = self._simple(PAD, x, block.shortcut.out_planes, block.shortcut.stride)
        for site in block.sites[:-1]:
            before, out = out, self._convolution(site, out)
            if before is not x:
                self.plan.give_back(before.place)
        if shortcut is not x:
            self.plan.give_back(x.place)
        last = self._convolution(block.sites[-1], out, shortcut, result)
        self.plan.give_back(out.place)
        if result is not None:
            self.plan.give_back(shortcut.place)
        return last


def _after(site, shape):
    """(channels, height, width) of what `site` makes of an image of that shape."""
    conv = site.conv
    stride, padding, dilation = conv.stride[0], conv.padding[0], conv.dilation[0]
    height, width = (
        (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel in zip(shape[1:], conv.kernel_size, strict=True)
    )
    if site.pool:
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    return conv.out_channels, height, width


def _shape_after(engine, shape, blocks):
    """The same after the stem and the first `blocks` blocks."""
    for site in (engine._stem, *(site for block in engine._blocks[:blocks] for site in block.sites)):
        shape = _after(site, shape)
    return shape


def _pieces(engine, shape, itemsize):
    """(blocks, images): how many blocks run how many images at a time, so that their maps stay in the caches: all up to the
    last that makes a map at least half as large as the largest. Deeper ones would read their weights too often."""
    maps = [math.prod(_shape_after(engine, shape[1:], i)) for i in range(len(engine._blocks) + 1)]
    images = max(1, PIECE // max(1, max(maps) * itemsize))
    if images >= shape[0]:
        return 0, shape[0]
    blocks = max(i for i, size in enumerate(maps) if 2 * size >= max(maps))
    return blocks, -(-shape[0] // -(-shape[0] // images))


def _lines(size):
    return -(-size // LINE) * LINE


def _aligned(size):
    """uint8 memory that starts on a cache line."""
    room = torch.empty(size + LINE, dtype=torch.uint8)
    return room[-room.data_ptr() % LINE :][:size]
