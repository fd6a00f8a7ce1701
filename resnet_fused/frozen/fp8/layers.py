"""The layers of an engine in e4m3: which convolutions, in which scales, and what they must compute.

An activation that every one of its readers takes in e4m3 is stored so, with one scale; any other stays in bfloat16, and the
first convolution in e4m3 that reads it brings it there.
"""

import functools
from typing import NamedTuple

import torch

from ...kernels import e4m3 as fp8
from ...kernels import layout
from ...modules.zero_pad import ZeroPadShortcut
from ...ops.convolution import fp8 as conv_fp8
from ..fold import fold
from ..gpu import layers, measure

_ops = torch.ops.resnet_fused
SLACK = 2.0**-11  # of the sizes of all terms: four instructions that keep 14 bits of the largest term each


class Form(NamedTuple):
    """The scales of a convolution's input, of its result and of what it adds; None: in bfloat16, nothing to divide by."""

    reads: float
    writes: float | None
    adds: float | None


def forms(blocks, largest):
    """{site: Form} of the sites of `blocks` that run in e4m3. `largest`: {name: the largest size of a value}, of a site's input
    under its name, of a projection's result under `result(site)`."""
    found, stored = {}, None  # the scale of a block's input where that is stored in e4m3; the stem writes bfloat16

    def scale(name):
        return fp8.scale_of(largest[name])

    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        *firsts, last = block.sites
        shortcut = stored
        if block.projection is not None:
            shortcut = scale(result(block.projection)) if _able(block.projection) and _able(last) else None
            if _able(block.projection):
                found[block.projection] = Form(scale(block.projection.name), shortcut, None)
        for site, reader in zip(firsts, block.sites[1:], strict=True):
            if _able(site):
                found[site] = Form(scale(site.name), scale(reader.name) if _able(reader) else None, None)
        stored = scale(after.sites[0].name) if after is not None and _able(last) and _reads_e4m3(after) else None
        if _able(last):
            found[last] = Form(scale(last.name), stored, shortcut)
    return found


def result(site):
    return f"{site.name}, result"


def why_not(site):
    return fp8.refusal(site.conv.weight.shape, site.conv.groups)


def _able(site):
    return why_not(site) is None


def _reads_e4m3(block):
    """Whether everything that reads the input of `block` takes e4m3."""
    if not _able(block.sites[0]):
        return False
    if block.projection is not None:
        return _able(block.projection)
    return _able(block.sites[-1]) and (block.shortcut is None or type(block.shortcut) is ZeroPadShortcut)


class Entry:
    """bfloat16 -> e4m3 in a scale."""

    writes_out, takes, stored = True, torch.bfloat16, fp8.E4M3

    def __init__(self, scale):
        self.inverse = 1.0 / scale

    def __call__(self, x, residual, out):
        _ops.quantise_fp8(layout.in_format(x, layout.CHANNELS_LAST), self.inverse, out)
        return out


class Conv(layers.Layer):
    """A convolution of e4m3 values with the batch norm folded into its weight, which has a scale for every output channel.

    The activations' scales are those of the calibration for good; `load()` quantises the weights as they are by then."""

    writes_out = True

    def __init__(self, site, dtype, form, tile=()):
        self.form, self.tile = form, tile
        super().__init__(site, dtype)
        self.takes, self.stored = fp8.E4M3, torch.bfloat16 if form.writes is None else fp8.E4M3
        self.entry = Entry(form.reads)

    def _values(self, dtype):
        weight, bias = fold(self.site.conv, self.site.bn)
        quantised, scales = fp8.quantised_weight(weight)
        unit = 1.0 if self.form.writes is None else self.form.writes
        return {
            "weight": layout.in_format(quantised, layout.CHANNELS_LAST), "weight_scale": scales,
            "scale": (scales.double() * self.form.reads / unit).float(), "shift": (bias.double() / unit).float(),
        }  # fmt: skip

    def arguments(self, x, residual):
        """Of the formula: everything but where the convolution lies."""
        added, written = (1.0 if scale is None else scale for scale in (self.form.adds, self.form.writes))
        return x, *(self.tensors[name] for name in ("weight", "scale", "shift")), residual, added / written

    def __call__(self, x, residual, out):
        geometry = self.geometry[:3]
        _ops.conv_fp8(*self.arguments(x, residual), out, *geometry, self.site.relu, self.tile)
        return out

    def scales(self):
        """For explain(): scales: reads 0.0123, weights 0.0004 to 0.002, writes 0.0345."""
        low, high = (f(self.tensors["weight_scale"]).item() for f in (torch.min, torch.max))
        parts = [f"reads {self.form.reads:.3g}", f"weights {low:.3g} to {high:.3g}"]
        parts += [f"adds {self.form.adds:.3g}"] if self.form.adds is not None else []
        parts += [f"writes {self.form.writes:.3g}"] if self.form.writes is not None else ["writes bfloat16"]
        return "scales: " + ", ".join(parts)


def share(layer, x, residual, out):
    """How far what `layer` computes is from float64 arithmetic on the same e4m3 values, as a share of one rounding and of what
    the matrix unit's sums may lose. Computed for the first images."""
    images = max(1, min(x.shape[0], (1 << 22) * x.shape[0] // x.numel()))
    ours = layer(x, residual, out)[:images]
    arguments = layer.arguments(x[:images], None if residual is None else residual[:images])
    geometry = layer.geometry[:3]
    oracle = conv_fp8.reference(*arguments, *geometry, layer.site.relu)
    return fp8.share(ours, oracle, conv_fp8.magnitude(*arguments, *geometry), SLACK)


def options(site, form):
    """{name: maker(site, dtype)} of the launch configurations that are measured for `site`."""
    n, _, p, q = layers.conv_shape(site)
    found = {"triton, e4m3": functools.partial(Conv, form=form)}
    for tile in fp8.alternatives(n, p, q, site.conv.weight.shape):
        name = "triton, e4m3 {}x{}, {} warps, {} stages".format(*tile[:4])
        found[name] = functools.partial(Conv, form=form, tile=tile)
    return found


def seconds_of(site, form, able, device, graphed, budget):
    """Seconds of each of the ways `able`, on random values; one that is not within `share` takes infinitely long."""
    x, residual, out = (
        fp8.narrow(torch.randn(shape, device=device).relu_() * 100, fp8.E4M3).to(memory_format=layout.CHANNELS_LAST)
        for shape in (site.shape, layers.conv_shape(site), layers.conv_shape(site))
    )
    residual = None if not site.residual else residual if form.adds is not None else residual.to(torch.bfloat16)
    out = out if form.writes is not None else out.to(torch.bfloat16)

    def made(way):
        layer = way.make(site, torch.bfloat16)
        return [functools.partial(layer, x, residual, out)], share(layer, x, residual, out)

    seconds = measure.compare(able, made, device, graphed, budget)
    if not seconds:
        raise ValueError(f"freeze: nothing runs {site.name} with the numbers of e4m3 arithmetic")
    return seconds
