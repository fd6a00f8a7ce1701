"""A frozen network in one call of the compiled library, where every layer is one of its kernels (csrc/cpu/network.h).

Between two convolutions Python, its allocations and their page faults took 3 of 26 ms (ResNet-34, bfloat16, batch 8).
"""

import torch
from torch import nn

from . import frozen_amx, native
from .frozen_amx import Amx, AmxStem
from .frozen_conv import StemWithPool, WinogradF2, WinogradF2Taps, WinogradF4, WinogradF4Taps
from .frozen_direct import Direct
from .frozen_plan import Plan
from .zero_pad import ZeroPadShortcut

COPY, STEM, AMX_STEM, DIRECT, AMX, WINOGRAD, PAD, MEAN = range(8)  # StepKind
NONE, INPUT, OUTPUT = -1, -2, -3
LINE = 64
SHAPES = 16  # of inputs whose steps are remembered
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
        self.ops, self.engine, self.dtype = native.namespace(), engine, engine.dtype
        self.half = engine.dtype == torch.bfloat16
        fc = engine._model.fc
        weight = fc.weight.detach().to(self.dtype).contiguous()
        bias = torch.zeros(fc.out_features) if fc.bias is None else fc.bias.detach().float()
        self.head_way = Direct if frozen_amx.why_no_unit() else Amx
        head = getattr(self.ops, f"{self.head_way.unit}_pack")(weight.view(*weight.shape, 1, 1))
        tensors = [t for site in engine._sites for t in (site.run.weight, site.run.bias)] + [head, bias]
        starts, size = [], 0
        for t in tensors:
            starts.append(size)
            size += -(-t.nbytes // LINE) * LINE
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
        self.prepared = {}

    def __call__(self, x):
        if x.shape[0] == 0:
            return torch.empty((0, self.engine._model.fc.out_features), dtype=self.dtype)
        key = (x.shape, torch.get_num_threads())
        prepared = self.prepared.get(key)
        if prepared is None:
            if len(self.prepared) >= SHAPES:
                self.prepared.clear()
            prepared = self.prepared[key] = _Prepared(self, x.shape)
        try:
            arena = prepared.arenas.pop()
        except IndexError:
            arena = torch.empty(prepared.bytes, dtype=torch.uint8)
        out = torch.empty((x.shape[0], self.engine._model.fc.out_features), dtype=self.dtype)
        self.ops.frozen_network(x, self.constants, prepared.steps, arena, prepared.activations, out)
        prepared.arenas.append(arena)
        return out


class _Prepared:
    """The steps for one shape of the input, and the arenas that no call is using."""

    def __init__(self, whole, shape):
        engine, plan, rows = whole.engine, Plan(), []
        n, c, h, w = shape

        def take(k, height, width):
            return plan.take((n, k, height, width))

        def add(site, x, residual=None):
            """x: (value or INPUT, channels, height, width) -> the same of the result."""
            place, c, h, w = x
            conv = site.conv
            kernel, stride, padding, dilation = conv.kernel_size, conv.stride[0], conv.padding[0], conv.dilation[0]
            height, width = (
                (size + 2 * padding - (k - 1) * dilation - 1) // stride + 1
                for size, k in zip((h, w), kernel, strict=True)
            )
            if site.pool:
                height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
            if height < 1 or width < 1:
                raise ValueError(f"engine: x is {tuple(shape)}: {site.name} has no output pixel")
            to = take(conv.out_channels, height, width) if residual is None else residual
            kind = KINDS[site.way]
            m, taps = (site.way.m, site.way.taps) if kind == WINOGRAD else (0, False)
            rows.append(
                [kind, place, NONE if residual is None else residual, to, *site.constants, n, h, w, c, conv.out_channels,
                 *kernel, stride, padding, dilation, site.relu, m, taps]
            )  # fmt: skip
            return to, conv.out_channels, height, width

        def simple(kind, x, k, stride=1):
            place, c, h, w = x
            height, width = (1, 1) if kind == MEAN else (-(-h // stride), -(-w // stride))
            to = take(k, height, width)
            rows.append([kind, place, NONE, to, 0, 0, n, h, w, c, k, 1, 1, stride, 0, 1, 0, 0, 0])
            return to, k, height, width

        x = INPUT, c, h, w
        if KINDS[engine._stem.way] not in (STEM, AMX_STEM):
            x = simple(COPY, x, c)
        before, x = x, add(engine._stem, x)
        if before[0] != INPUT:
            plan.give_back(before[0])
        for block in engine._blocks:
            shortcut, out = x, x
            if block.projection is not None:
                shortcut = add(block.projection, x)
            elif block.shortcut is not None:
                shortcut = simple(PAD, x, block.shortcut.out_planes, block.shortcut.stride)
            for site in block.sites[:-1]:
                before, out = out, add(site, out)
                if before is not x:
                    plan.give_back(before[0])
            if shortcut is not x:
                plan.give_back(x[0])
            before, x = out, add(block.sites[-1], out, shortcut[0])
            plan.give_back(before[0])
        pooled = simple(MEAN, x, x[1])
        fc = engine._model.fc
        head = [n, 1, 1, fc.in_features, fc.out_features, 1, 1, 1, 0, 1, 0, 0, 0]
        rows.append([KINDS[whole.head_way], pooled[0], NONE, OUTPUT, *whole.head, *head])

        starts, size = [], 0
        for elements in plan.sizes:
            starts.append(size)
            size += -(-elements * whole.dtype.itemsize // LINE) * LINE
        places = [starts[slot] for slot, _ in plan.places]
        for row in rows:
            row[1:4] = [v if v < 0 else places[v] for v in row[1:4]]
        self.steps = torch.tensor(rows, dtype=torch.int64)
        self.activations = size
        self.bytes = size + whole.ops.frozen_network_workspace(self.steps, whole.half)
        self.arenas = []


def _aligned(size):
    """uint8 memory that starts on a cache line."""
    room = torch.empty(size + LINE, dtype=torch.uint8)
    return room[-room.data_ptr() % LINE :][:size]
