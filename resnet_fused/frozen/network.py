"""The convolutions of a ResNet that is frozen, block by block, and how long each way to run one takes."""

import itertools
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from ..kernels import layout
from ..modules.eligible import why_not_convolution
from ..modules.norms import why_not_norm


@dataclass(eq=False)
class Site:
    """One convolution of the network with what follows it, and the shape of its input."""

    name: str
    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    relu: bool = True
    residual: bool = False
    pool: bool = False
    shape: tuple = ()
    run: object = None
    way: object = None
    ranking: list = field(default_factory=list)  # of the ways, the fastest first
    reason: str = ""

    @property
    def key(self):
        """Sites with the same key are tuned together."""
        conv = self.conv
        return (
            self.shape, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            self.relu, self.residual, self.pool,
        )  # fmt: skip

    @property
    def op(self):
        return "conv_bn" + "_add" * self.residual + "_relu" * self.relu + "_pool" * self.pool


class Block:
    """A residual block: its convolutions in order, and its shortcut."""

    def __init__(self, name, block):
        pairs = [(i, getattr(block, f"conv{i}", None), getattr(block, f"bn{i}", None)) for i in (1, 2, 3)]
        pairs = [(i, conv, bn) for i, conv, bn in pairs if conv is not None]
        last = pairs[-1][0]
        self.sites = [Site(f"{name}.conv{i}", conv, bn, residual=i == last) for i, conv, bn in pairs]
        self.projection, self.shortcut = None, block.downsample
        self.pair = None  # one launch for the first convolution and the projection, in a static engine
        if isinstance(self.shortcut, nn.Sequential):
            if len(self.shortcut) != 2:
                raise TypeError(f"freeze: {name}.downsample is not a convolution and a batch norm; use the live model")
            conv, bn = self.shortcut
            self.projection = Site(f"{name}.downsample", conv, bn, relu=False)

    def all_sites(self):
        return self.sites + ([self.projection] if self.projection else [])

    def __call__(self, x):
        out = x
        for site in self.sites[:-1]:
            out = site.run(out)
        if self.projection is not None:
            x = self.projection.run(x)
        elif self.shortcut is not None:
            x = self.shortcut(x).contiguous(memory_format=layout.CHANNELS_LAST)  # F.pad returns NCHW
        return self.sites[-1].run(out, x)


def stages(model):
    """[(name, blocks)]: layer1, layer2, ... of a ResNet, as many as it has."""
    names = itertools.takewhile(lambda name: hasattr(model, name), (f"layer{i}" for i in itertools.count(1)))
    return [(name, getattr(model, name)) for name in names]


def pool_of(model):
    """What follows the stem; networks for small images have nothing there."""
    return getattr(model, "maxpool", None) or nn.Identity()


def check_model(model):
    """Raises TypeError unless `model` has the parts of a ResNet."""
    missing = [part for part in ("conv1", "bn1", "layer1", "avgpool", "fc") if not hasattr(model, part)]
    if missing:
        raise TypeError(f"freeze: {type(model).__name__} is not a ResNet: it has no {missing[0]}")
    for name, blocks in stages(model):
        for j, block in enumerate(blocks):
            if not all(hasattr(block, part) for part in ("conv1", "bn1", "conv2", "bn2", "downsample")):
                raise TypeError(f"freeze: {name}.{j} is a {type(block).__name__}, not a BasicBlock or Bottleneck")


def check_site(site):
    why = why_not_convolution(site.conv) or why_not_norm(site.bn)
    if why is None and site.bn.running_var is None:
        why = "has no running statistics to fold"
    if why is not None:
        raise TypeError(f"freeze: {site.name} {why}; use the live model")


def measure(sites, able, dtype, seconds):
    """{way: seconds per call}: the best of interleaved rounds, in turn over all `sites` so that weights are not hot.

    The best and not the median: whatever else runs on the machine can only make a sample longer.
    """
    shape = sites[0].shape
    x = torch.randn(shape).relu_().to(dtype).contiguous(memory_format=layout.CHANNELS_LAST)
    sites = sites[:3]  # enough that their weights are not hot; packing more would only cost time
    runs = {way: [way(site, dtype) for site in sites] for way in able}
    residual = None
    if sites[0].residual:
        residual = torch.zeros_like(runs[able[0]][0](x))
    samples = {way: [] for way in able}
    start = time.perf_counter()
    while len(samples[able[-1]]) < 3 or (time.perf_counter() - start < seconds and len(samples[able[-1]]) < 25):
        for way in able:
            before = time.perf_counter()
            for run in runs[way]:
                run(x) if residual is None else run(x, residual)
            samples[way].append((time.perf_counter() - before) / len(sites))
    return {way: min(s) for way, s in samples.items()}


def best_of_calls(run, x, calls=7):
    """Seconds of the fastest of some calls, after one that allocates."""
    run(x)
    samples = []
    for _ in range(calls):
        before = time.perf_counter()
        run(x)
        samples.append(time.perf_counter() - before)
    return min(samples)
