"""The layers of an engine in e4m3: which convolutions use e4m3, in which scales, and what they must compute.

An activation is stored in e4m3, with one scale, where every one of its readers takes e4m3. Any other activation stays
in bfloat16, and the first convolution in e4m3 that reads it converts it.
"""

import functools
from typing import NamedTuple

import torch

from ...kernels import e4m3 as fp8
from ...kernels import layout
from ...kernels.epilogue import NONE, RELU
from ...modules.zero_pad import ZeroPadShortcut
from ...ops.convolution import fp8 as _registered  # noqa: F401 (the ops that the layers call)
from ..fold import fold
from ..gpu import layers, measure
from ..network import Apply, ConvBn

_ops = torch.ops.resnet_fused


class Form(NamedTuple):
    """The scales of a convolution's input, of its result and of its residual. None: the value is bfloat16 and has no
    scale."""

    reads: float
    writes: float | None
    adds: float | None


def forms(steps, largest):
    """{step: Form} of the convolutions of `steps` that run in e4m3. `largest`: {name: the largest size of a value}. The
    input of a convolution stands under its name, the result of a projection under `result(step)`."""
    readers, able = {}, [step for step in steps if _able(step)]
    for step in steps:
        for value in set(step.reads):
            readers.setdefault(value, []).append(step)

    def takes(step):
        """Whether `step` takes its input in e4m3. Moving pixels and adding zeros changes no value."""
        moves = isinstance(step, Apply) and type(step.module) is ZeroPadShortcut
        return step in able or (moves and all(map(takes, readers.get(step.output, ()))))

    scales = {}  # scales of the values that are stored in e4m3
    for step in steps:
        if step in able and all(map(takes, readers.get(step.output, [None]))):
            names = [reader.name for reader in readers[step.output] if reader in able and reader.input == step.output]
            scales[step.output] = fp8.scale_of(largest[names[0] if names else result(step)])
        elif isinstance(step, Apply) and takes(step):
            scales[step.output] = scales[step.input]
    return {
        step: Form(fp8.scale_of(largest[step.name]), scales.get(step.output), scales.get(step.residual))
        for step in able
    }


def result(step):
    return f"{step.name}, result"


def why_not(step):
    return fp8.refusal(step.conv.weight.shape, step.conv.groups)


def _able(step):
    return isinstance(step, ConvBn) and step.input != 0 and why_not(step) is None


class Entry:
    """Converts bfloat16 to e4m3 in a scale."""

    writes_out, takes, stored = True, torch.bfloat16, fp8.E4M3

    def __init__(self, scale):
        self.inverse = 1.0 / scale

    def __call__(self, x, residual, out):
        _ops.quantise_fp8(layout.in_format(x, layout.CHANNELS_LAST), self.inverse, out)
        return out


class Conv(layers.Layer):
    """A convolution of e4m3 values. The batch norm is folded into its weight, which has a scale for every output
    channel.

    The scales of the activations stay those of the calibration. `load()` quantises the weights as they are at that
    time.
    """

    writes_out = True

    def __init__(self, step, dtype, form, tile=()):
        self.form, self.tile = form, tile
        super().__init__(step, dtype)
        self.takes, self.stored = fp8.E4M3, torch.bfloat16 if form.writes is None else fp8.E4M3
        self.entry = Entry(form.reads)

    def _values(self, dtype):
        weight, bias = fold(self.step.conv, self.step.bn)
        quantised, scales = fp8.quantised_weight(weight)
        unit = 1.0 if self.form.writes is None else self.form.writes
        return {
            "weight": layout.in_format(quantised, layout.CHANNELS_LAST), "weight_scale": scales,
            "scale": (scales.double() * self.form.reads / unit).float(), "shift": (bias.double() / unit).float(),
        }  # fmt: skip

    def arguments(self, x, residual):
        """Arguments of the formula: everything except where the convolution lies."""
        added, written = (1.0 if scale is None else scale for scale in (self.form.adds, self.form.writes))
        return x, *(self.tensors[name] for name in ("weight", "scale", "shift")), residual, added / written

    def __call__(self, x, residual, out):
        geometry = self.geometry[:3]
        _ops.conv_fp8(*self.arguments(x, residual), out, *geometry, RELU if self.step.relu else NONE, self.tile)
        return out

    def scales(self):
        """For explain(): scales: reads 0.0123, weights 0.0004 to 0.002, writes 0.0345."""
        low, high = (f(self.tensors["weight_scale"]).item() for f in (torch.min, torch.max))
        parts = [f"reads {self.form.reads:.3g}", f"weights {low:.3g} to {high:.3g}"]
        parts += [f"adds {self.form.adds:.3g}"] if self.form.adds is not None else []
        parts += [f"writes {self.form.writes:.3g}"] if self.form.writes is not None else ["writes bfloat16"]
        return "scales: " + ", ".join(parts)


def share(layer, x, residual, out):
    """The error of `layer` against float64 arithmetic on the same e4m3 values, relative to one rounding plus the error
    of the matrix unit's sums. It is computed for the first images."""
    images = max(1, min(x.shape[0], (1 << 22) * x.shape[0] // x.numel()))
    ours = layer(x, residual, out)[:images]
    arguments = layer.arguments(x[:images], None if residual is None else residual[:images])
    geometry = layer.geometry[:3]
    oracle = fp8.reference(*arguments, *geometry, layer.step.relu)
    return fp8.share(ours, oracle, fp8.magnitude(*arguments, *geometry), fp8.SLACK)


def options(step, form):
    """{name: maker(step, dtype)} of the launch configurations to measure for `step`."""
    n, _, p, q = step.conv_shape()
    found = {"triton, e4m3": functools.partial(Conv, form=form)}
    for tile in fp8.alternatives(n, p, q, step.conv.weight.shape):
        name = "triton, e4m3 {}x{}, {} warps, {} stages".format(*tile[:4])
        found[name] = functools.partial(Conv, form=form, tile=tile)
    return found


def seconds_of(step, form, able, device, graphed, budget):
    """Seconds of each of the candidates `able`, on random values. A candidate that is not within `share` takes
    infinitely long."""
    x, residual, out = (
        fp8.narrow(torch.randn(shape, device=device).relu_() * 100, fp8.E4M3).to(memory_format=layout.CHANNELS_LAST)
        for shape in (step.shape, step.conv_shape(), step.conv_shape())
    )
    residual = None if not step.adds else residual if form.adds is not None else residual.to(torch.bfloat16)
    out = out if form.writes is not None else out.to(torch.bfloat16)

    def made(candidate):
        layer = candidate.make(step, torch.bfloat16)
        return [functools.partial(layer, x, residual, out)], share(layer, x, residual, out)

    return measure.compare(able, made, device, graphed, budget, f"{step.name} with the numbers of e4m3 arithmetic")
