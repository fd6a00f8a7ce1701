"""The engine of freeze() for CPUs: batch norm folded into the convolutions, weights packed once, activations
channels_last.

Every convolution is one call with its residual and ReLU, by the fastest kernel for its shape. Where the library has a
kernel for every step, the whole network may be one call.
"""

import torch
import torch.nn.functional as F

from ...kernels import layout
from ...measure import remembered
from .. import check
from ..engine import Engine, without_autocast
from ..network import Apply, ConvBn, dead_values
from . import measure, one_call
from .convolutions import candidates
from .winograd import F4

DTYPES = (torch.float32, torch.bfloat16)
# channels; run by layer, F(2x2) costs ResNet-34 (bfloat16, batch 8) 2.9 ms in layers of so many, 7.4 ms in earlier ones
DEEP = 256
NO_LIMIT = 1 << 30  # channels: more than any layer has
TUNING_SECONDS = 3.0  # at most, for a whole network; it bounds the time of freeze()


class ByLayers:
    """The other way to run a network: each layer is a call of its own, by the layer's fastest kernel."""

    name = "layers"


class CpuEngine(Engine):
    """An `Engine` for inputs of any batch and size on a CPU."""

    def __init__(self, model, example, dtype, exact, f4_below):
        super().__init__(model, example, dtype, {"exact": exact, "f4_below": f4_below})
        self.exact = exact
        self._one_call, self._calls = None, []

    def _choose(self, example):
        below = self.options["f4_below"]
        self._choose_layers(without=F4, channels=NO_LIMIT if below is None else below)
        self._choose_one_call(example)

    def _choose_layers(self, without=(), channels=0):
        """Chooses the fastest candidate for each layer. Layers with so many channels or more do not use the candidates
        in `without`."""
        groups = {}
        for step in self._convolutions:
            groups.setdefault(step.key, []).append(step)
        for steps in groups.values():
            able = candidates(steps[0], self.dtype, self.exact)
            if steps[0].conv.in_channels >= channels:
                able = [candidate for candidate in able if candidate not in without]
            if len(able) == 1:
                seconds, reason = {able[0]: 0.0}, "the only way for this layer"
            else:
                key = remembered.key("frozen", self.dtype, *steps[0].key)
                seconds = self._measured(
                    key, able, lambda s=steps, a=able: measure.layer(s, a, self.dtype, TUNING_SECONDS / len(groups))
                )
                best, second, *_ = sorted(seconds, key=seconds.get)
                reason = f"{1e3 * seconds[best]:.2f} ms; {second.name}: {1e3 * seconds[second]:.2f} ms"
            for step in steps:
                step.ranking = sorted(seconds, key=seconds.get)
                step.choice, step.reason = step.ranking[0], reason

    def _choose_one_call(self, example):
        """Whether the network in one call of the library is faster than layer by layer. Asked where the library has a
        kernel for every layer, but not all of the fastest kernels are the library's."""
        fastest = {step: step.choice for step in self._convolutions}
        own = {step: one_call.own_candidate(step) for step in self._convolutions}
        if None in own.values() or own == fastest:
            return

        def use(choices):
            for step in self._convolutions:
                step.choice = choices[step]

        def seconds_with(choices):
            use(choices)
            self._load()
            return measure.network(self, example)

        use(own)
        faster = False
        if one_call.why_not(self._steps) is None:
            able = (one_call.OneCall, ByLayers)
            key = remembered.key("frozen network", self.dtype, *((*s.key, own[s].name) for s in self._convolutions))
            seconds = self._measured(key, able, lambda: {able[0]: seconds_with(own), able[1]: seconds_with(fastest)})
            faster = seconds[one_call.OneCall] <= seconds[ByLayers]
        use(own if faster else fastest)
        for step in self._convolutions if faster else ():
            if own[step] is not fastest[step]:
                step.reason = f"in one call with all layers; alone: {step.reason}"

    def _load(self):
        for step in self._convolutions:
            step.run = step.choice(step, self.dtype)
        self._one_call = None if one_call.why_not(self._steps) else one_call.OneCall(self._steps, self.dtype)
        dead = dead_values(self._steps)
        self._calls = [
            (_function(step, self.dtype), step.input, step.residual, step.output, values)
            for step, values in zip(self._steps, dead, strict=True)
        ]

    def _prove(self, example):
        """Checks that this is the network of the model, within its error budget.

        F(4x4,3x3) has 1.8 times the RMS error of a direct convolution in a layer in float32, and 2.9 times in bfloat16
        (docs/design/winograd.md). That fits the error budget of the networks that were measured, but other networks may
        exceed it. In bfloat16 folding alone leaves less than eager's error, so the logits must not be further off than
        eager's.
        """
        bf16 = self.dtype == torch.bfloat16
        few = example[: check.CHECKED if bf16 and self._f4_layers() else 1]
        errors = self._errors(few)
        # An engine file holds the decision, because its reader has only noise for an example.
        undecided = self.options["f4_below"] is None
        if undecided:
            self.options["f4_below"] = NO_LIMIT
        for channels in (DEEP, 0) if undecided else ():
            layers = self._f4_layers(channels)
            if layers and (errors.share > 1 or (bf16 and errors.worse)):
                far = (
                    f"{errors.share:.2g} times their error budget away"
                    if errors.share > 1
                    else "further off than eager's"
                )
                self.options["f4_below"] = channels
                self._choose_layers(without=F4, channels=channels)
                self._choose_one_call(example)
                self._load()
                for step in layers:
                    step.reason = f"F(4x4) dropped: the logits were {far}; {step.reason}"
                errors = self._errors(few)
        self.notes = [errors.absurd] if errors.absurd else []
        if errors.share > 1:
            worst = check.worst_layer(self._steps, _layer, few.to(self.dtype))
            if errors.share > check.ANOTHER_NETWORK and worst.share > check.ANOTHER_NETWORK:
                check.refuse(self.dtype, errors.share, worst)
            check.check_network(self._model, errors.share)
            self.notes.append(f"the logits use {errors.share:.2f} of their error budget; the worst layer is {worst}")

    def _f4_layers(self, channels=0):
        """The layers with so many channels or more that F(4x4,3x3) runs."""
        return [step for step in self._convolutions if step.choice in F4 and step.conv.in_channels >= channels]

    def _errors(self, few):
        return check.errors(self._model, self(few), few)

    @torch.no_grad()
    def refresh(self):
        self._load()

    @torch.no_grad()
    @without_autocast
    def __call__(self, x):
        channels = self._convolutions[0].conv.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"engine: x should be [N, {channels}, H, W], got {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise ValueError(f"engine: x is on {x.device}, the engine was frozen on cpu")
        if x.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"engine: x is {x.dtype}, the engine takes torch.float32 or {self.dtype}")
        if self._one_call is not None:
            return self._one_call(x)
        if not getattr(self._convolutions[0].run, "any_layout", False):
            x = x.to(self.dtype).contiguous(memory_format=layout.CHANNELS_LAST)
        values = [x] + [None] * len(self._calls)
        for run, x, residual, out, dead in self._calls:
            values[out] = run(values[x]) if residual is None else run(values[x], values[residual])
            for value in dead:
                values[value] = None  # the next step may use its memory
        return values[out]


def _function(step, dtype):
    """The function that runs `step` on its values, with the present weights."""
    if isinstance(step, ConvBn):
        return step.run
    if isinstance(step, Apply):  # F.pad returns NCHW
        return lambda x: step.module(x).contiguous(memory_format=layout.CHANNELS_LAST)
    weight = step.fc.weight.detach().to(dtype, copy=True)
    bias = None if step.fc.bias is None else step.fc.bias.detach().to(dtype, copy=True)
    return lambda x: F.linear(torch.flatten(step.avgpool(x), 1), weight, bias)


def _layer(step):
    """The kernel of `step` as check.worst_layer calls it. The residual is cloned, because a kernel may overwrite it."""
    return lambda x, residual, out: step.run(x) if residual is None else step.run(x, residual.clone())


@torch.no_grad()
def freeze_cpu(model, example, *, dtype=None, exact=False, f4_below=None):
    """A `CpuEngine` for `model`, tuned for inputs of the shape of `example`; see `freeze` for the arguments and errors.

    f4_below: only layers with fewer channels may use F(4x4,3x3). None: the error of the logits of the example decides.
    """
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32 or torch.bfloat16, not {dtype}")
    if example.dim() != 4 or example.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example.shape)}")
    return CpuEngine(model, example, dtype, exact, f4_below)._made(example)
