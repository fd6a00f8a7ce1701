"""Stretches of a frozen network in one call of the compiled library, where the library has a kernel for every step
(csrc/cpu/network/network.h).

Between the convolutions Python, its allocations and their page faults took 3 of 26 ms (ResNet-34, bfloat16, batch 8).
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from ...kernels import library
from ...modules.zero_pad import ZeroPadShortcut
from ..gate import Gate
from ..memory_plan import MemoryPlan
from ..network import Apply, ConvBn, Head, dead_values
from . import amx
from .amx import Amx, AmxStem
from .depthwise import Depthwise
from .direct import Direct
from .grouped import Grouped
from .maps import is_able_apply, map_after, pool_of, shape_after
from .pointwise import number_of
from .stem import Stem
from .winograd import WINOGRAD

COPY, STEM, AMX_STEM, DIRECT, AMX, WINOGRAD_CONV, PAD, MEAN, DEPTHWISE, GATE, MAX_POOL, GROUPED = range(12)  # StepKind
NONE, INPUT, OUTPUT = -1, -2, -3
LINE = 64
SHAPES = 16  # shapes of the input whose encodings are remembered
PIECE = 7 << 19  # bytes of a map that stays in the caches: 4 images of 64 channels at 56x56 in float32
KINDS = {
    Stem: STEM, AmxStem: AMX_STEM, Direct: DIRECT, Amx: AMX, Depthwise: DEPTHWISE,
    Grouped: GROUPED, **dict.fromkeys(WINOGRAD, WINOGRAD_CONV),
}  # fmt: skip


def own_candidate(step):
    """The fastest of the library's kernels that was measured for a convolution, or None."""
    return next((candidate for candidate in step.ranking if candidate in KINDS), None)


def is_able(step):
    """Whether the library has a kernel for `step`."""
    if isinstance(step, ConvBn):
        return own_candidate(step) is not None
    return is_able_apply(step.module) if isinstance(step, Apply) else type(step.fc) is nn.Linear


def stretches(steps, results):
    """The longest runs of `steps` that the library can run in one call: they read one value from outside, and what they
    write, nobody outside reads but the last value. `results`: the values that the network returns."""
    found, i = [], 0
    last_reads = {value: i for i, step in enumerate(steps) for value in step.reads}
    last_reads |= dict.fromkeys(results, len(steps))
    while i < len(steps):
        made, outside, end = set(), set(), i
        for j in range(i, len(steps)):
            step = steps[j]
            outside |= set(step.reads) - made
            if not is_able(step) or len(outside) > 1:
                break
            made.add(step.output)
            if all(last_reads.get(value, -1) <= j for value in made - {step.output}):
                end = j + 1
            if isinstance(step, Head):
                break
        if end > i + 1 and isinstance(steps[i], ConvBn):
            found.append(steps[i:end])
        i = max(end, i + 1)
    return found


class OneCall:
    """`one_call(x)` -> the last value of a stretch of loaded steps: a map, or logits [N, classes]. It is thread-safe: each
    call takes an arena that no other call uses, or makes one."""

    name = "whole"  # its name in tuning tables and files

    def __init__(self, steps, dtype):
        self.ops, self.steps, self.dtype = library.namespace(), steps, dtype
        self.bf16 = dtype == torch.bfloat16
        self.head_kind = Direct if amx.why_not_unit() else Amx
        owners = [step for step in steps if not isinstance(step, Apply)]
        tensors = [t for step in owners for t in self._constants_of(step)]
        starts, size = [], 0
        for t in tensors:
            starts.append(size)
            size += _lines(t.nbytes)
        self.constants = _aligned(size)
        self.ops.large_pages(self.constants)
        views = []
        for t, start in zip(tensors, starts, strict=True):
            views.append(self.constants[start : start + t.nbytes].view(t.dtype).view(t.shape))
            views[-1].copy_(t)
        for i, step in enumerate(owners):
            if isinstance(step, ConvBn):
                step.run.weight, step.run.bias = views[2 * i : 2 * i + 2]  # memory holds one copy of each
        self.starts = {step.output: starts[2 * i : 2 * i + 2] for i, step in enumerate(owners)}
        self.encodings, self.arenas = {}, []  # {(shape, dense, threads): Encoding}; arenas that no call uses

    def _constants_of(self, step):
        if isinstance(step, ConvBn):
            return step.run.weight, step.run.bias
        weight = step.fc.weight.detach().to(self.dtype).contiguous()
        packed = getattr(self.ops, f"{self.head_kind.unit}_pack")(weight.view(*weight.shape, 1, 1))
        return packed, torch.zeros(len(weight), device="cpu") if step.fc.bias is None else step.fc.bias.detach().float()

    def __call__(self, x):
        count, channels, height, width = x.shape
        strides = height * width * channels, 1, width * channels, channels
        dense = x.dtype == self.dtype and x.stride() == strides
        key = (x.shape, dense, torch.get_num_threads())
        if (encoding := self.encodings.get(key)) is None:
            if len(self.encodings) >= SHAPES:
                self.encodings.clear()
            encoding = self.encodings[key] = Encoding(self, x.shape, dense)
        out = torch.empty(encoding.out_shape, dtype=self.dtype, device="cpu")
        if count > 0:
            arena = self._arena(encoding.bytes)
            self.ops.frozen_network(x, self.constants, encoding.numbers, arena, encoding.activations, out)
            self.arenas.append(arena)
        return out.flatten(1) if encoding.flat else out.permute(0, 3, 1, 2)

    def _arena(self, size):
        """Memory that no other call uses. Shapes share arenas: at most as many exist as calls ran at once, each for the
        largest shape."""
        try:
            arena = self.arenas.pop()
        except IndexError:
            arena = None
        large = arena is not None and len(arena) >= size
        return arena if large else torch.empty(size, dtype=torch.uint8, device="cpu")


class _Map(NamedTuple):
    """Where a value of the network lies (a value of the memory plan, INPUT or OUTPUT), the shape of one image, and the
    first image of the batch."""

    place: int
    channels: int
    height: int
    width: int
    first: int = 0


class Encoding:
    """The steps for one shape of the input, and whether it lies as the maps do (`dense`): `numbers` as
    csrc/cpu/network/network.h defines them, and `bytes` of an arena. The first `activations` bytes of the arena are for
    maps."""

    def __init__(self, one_call, shape, dense=False):
        self.one_call, self.shape, self.images, self.dense = one_call, tuple(shape), shape[0], dense
        self.plan, self.rows = MemoryPlan(), []
        steps = one_call.steps
        self.dead = dict(zip(steps, dead_values(steps), strict=True))
        channels, height, width = map_after(steps, self.shape[1:])
        self.flat, self.out_shape = isinstance(steps[-1], Head), (self.images, height, width, channels)
        if self.images == 0:
            return
        count, images = pieces(steps, self.shape, one_call.dtype.itemsize)
        image = _Map(INPUT, *self.shape[1:])
        if images < self.images:
            whole = self._take(*map_after(steps[:count], self.shape[1:]))
            for first in range(0, shape[0], images):
                self.images = min(images, shape[0] - first)
                self._encode(steps[:count], image._replace(first=first), whole._replace(first=first))
            self.images, steps, image = shape[0], steps[count:], whole
        self._encode(steps, image, _Map(OUTPUT, channels, height, width))
        self._finish()

    def _encode(self, steps, x, result):
        """Appends `steps`. The first reads `x`, the last writes to `result`."""
        image, source = x, steps[0].input
        maps = {source: x}
        if x.place == INPUT and any(source in step.reads and not self._reads_in_place(step, source) for step in steps):
            maps[source] = self._append(COPY, x, self._take(*x[1:4]))
        for step in steps:
            x, residual, out = maps[step.input], maps.get(step.residual), result if step is steps[-1] else None
            if isinstance(step, ConvBn):
                if step.input == source and _reads_image(step):
                    x = image
                if (
                    out is None
                    and step.adds
                    and step.residual in self.dead[step]
                    and step.residual != step.input
                    and residual.place != INPUT
                ):
                    out = residual  # nobody else reads it
                maps[step.output] = self._convolution(step, x, residual, out)
            elif isinstance(step, Apply):
                maps[step.output] = self._apply(step, maps, out)
            else:
                mean = self._append(MEAN, x, self._take(x.channels, 1, 1))
                self._append(KINDS[self.one_call.head_kind], mean, out, constants=self.one_call.starts[step.output])
            for value in self.dead[step]:
                place = maps.pop(value).place
                if place >= 0 and place != maps.get(step.output, result).place:
                    self.plan.give_back(place)

    def _reads_in_place(self, step, source):
        """Whether the kernel of `step` reads the value `source` from the input itself."""
        is_gate = isinstance(step, Apply) and type(step.module) is Gate
        return _reads_image(step) or (self.dense and not (is_gate and step.reads[1] == source))

    def _apply(self, step, maps, out):
        """Writes the result of an Apply to `out`, or where `out` is None to a new map."""
        module, (x, *others) = step.module, (maps[value] for value in step.reads)
        out = out or self._take(*shape_after(module, x[1:4]))
        if type(module) is Gate:
            gate, residual = (*others, None)[:2]
            return self._append(GATE, x, out, residual=residual, gate=gate, activation=module.relu)
        if type(module) is ZeroPadShortcut:
            return self._append(PAD, x, out, stride=module.stride)
        if (pool := pool_of(module)) is None:
            return self._append(MEAN, x, out)
        kernel, stride, padding = pool
        return self._append(MAX_POOL, x, out, kernel=(kernel, kernel), stride=stride, padding=padding)

    def _convolution(self, step, x, residual, out):
        """Writes the result to `out`, or where `out` is None to a new map."""
        conv, choice = step.conv, step.choice
        shape = step.out_shape((1, *x[1:4]))[1:]
        if min(shape) < 1:
            raise ValueError(f"engine: x is {self.shape}: {step.name} has no output pixel")
        kind = KINDS[choice]
        m, taps = (choice.m, choice.taps) if kind == WINOGRAD_CONV else (0, False)
        return self._append(
            kind, x, out or self._take(*shape), residual=residual, constants=self.one_call.starts[step.output],
            kernel=conv.kernel_size, stride=conv.stride[0], padding=conv.padding[0], dilation=conv.dilation[0],
            activation=number_of(step), m=m, taps=taps, width=conv.in_channels // conv.groups,
        )  # fmt: skip

    def _append(
        self, kind, x, to, *, residual=None, constants=(0, 0), kernel=(1, 1), stride=1, padding=0, dilation=1,
        activation=0, m=0, taps=False, width=0, gate=None,
    ):  # fmt: skip
        self.rows.append(
            (kind, (x, residual, to), gate, (*constants, self.images, x.height, x.width, x.channels, to.channels,
             *kernel, stride, padding, dilation, activation, m, taps, width,
             next((y.first for y in (x, residual) if y is not None and y.place == INPUT), 0)))
        )  # fmt: skip
        return to

    def _take(self, channels, height, width):
        return _Map(self.plan.take((self.images, channels, height, width)), channels, height, width)

    def _finish(self):
        """Replaces values of the plan by bytes from the start of the arena."""
        itemsize = self.one_call.dtype.itemsize
        starts, size = [], 0
        for elements in self.plan.sizes:
            starts.append(size)
            size += _lines(elements * itemsize)

        def place(value):
            if value is None or value.place < 0:
                return NONE if value is None else value.place
            slot, (_, *image) = self.plan.values[value.place]
            return starts[slot] + value.first * math.prod(image) * itemsize

        rows = [[kind, *map(place, maps), *numbers, place(gate)] for kind, maps, gate, numbers in self.rows]
        self.numbers, self.activations = torch.tensor(rows, dtype=torch.int64, device="cpu"), size
        self.bytes = size + self.one_call.ops.frozen_network_workspace(self.numbers, self.one_call.bf16)


def _reads_image(step):
    """Whether the kernel of `step` reads an image of any layout."""
    return isinstance(step, ConvBn) and KINDS[step.choice] in (STEM, AMX_STEM)


def pieces(steps, shape, itemsize):
    """(count, images): the first `count` steps run `images` images at a time, so that their maps stay in the caches.
    They end with the last block that makes a map at least half as large as the largest. Deeper steps would read their
    weights too often."""
    alive, ends = set(), []  # ends: of blocks, where only one value is still needed
    for i, (step, dead) in enumerate(zip(steps[:-1], dead_values(steps), strict=False)):
        alive = (alive | {step.output}) - set(dead)
        reads_input = any(steps[0].input in later.reads for later in steps[i + 1 :])
        ends += [i + 1] if alive == {step.output} and not reads_input else []
    if not ends:
        return 0, shape[0]
    maps = {end: math.prod(map_after(steps[:end], shape[1:])) for end in ends}
    images = max(1, PIECE // max(1, max(maps.values()) * itemsize))
    if images >= shape[0]:
        return 0, shape[0]
    count = max(end for end, size in maps.items() if 2 * size >= max(maps.values()))
    return count, -(-shape[0] // -(-shape[0] // images))


def _lines(size):
    return -(-size // LINE) * LINE


def _aligned(size):
    """uint8 memory that starts on a cache line."""
    room = torch.empty(size + LINE, dtype=torch.uint8, device="cpu")
    return room[-room.data_ptr() % LINE :][:size]
