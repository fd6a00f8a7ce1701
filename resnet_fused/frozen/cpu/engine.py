"""The engine of freeze() for CPUs: batch norm folded into the convolutions, weights packed once, activations
channels_last.

Every convolution is one call with its residual and ReLU, by the fastest kernel for its shape. Where the library has a
kernel for every step, the whole network may be one call.
"""

import functools
import math

import torch

from ...kernels import layout
from ...measure import remembered
from .. import check
from ..engine import Engine, without_autocast
from ..function import UNARY, fill, values_of
from ..network import ConvBn
from . import measure, one_call, passes
from .calls import Calls
from .convolutions import candidates
from .winograd import F4

DTYPES = (torch.float32, torch.bfloat16)
# channels; run by layer, F(2x2) costs ResNet-34 (bfloat16, batch 8) 2.9 ms in layers of so many, 7.4 ms in earlier ones
DEEP = 256
NO_LIMIT = 1 << 30  # channels: more than any layer has
MEMORY = {"fast": 1.0, "small": 1.1}  # within so many times the shortest time the smallest weights are preferred
TUNING_SECONDS = 3.0  # at most, for a whole network; it bounds the time of freeze()


class ByLayers:
    """The other way to run a stretch: each layer is a call of its own, by the layer's fastest kernel."""

    name = "layers"


class CpuEngine(Engine):
    """An `Engine` for inputs of any batch and size on a CPU."""

    _unary = tuple(UNARY)

    def __init__(self, model, example, dtype, exact, f4_below, memory):
        super().__init__(model, example, dtype, {"exact": exact, "f4_below": f4_below, "memory": memory})
        self.exact, self.limit = exact, MEMORY[memory]
        self._results, self._calls = values_of(self._result), None

    def _choose(self, example):
        below = self.options["f4_below"]
        self._choose_layers(without=F4, channels=NO_LIMIT if below is None else below)
        self._choose_stretches()

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
            ranking = sorted(seconds, key=seconds.get)
            near = [candidate for candidate in ranking if seconds[candidate] <= self.limit * seconds[ranking[0]]]
            ranking.sort(key=lambda candidate, near=near: candidate.growth if candidate in near else math.inf)
            for step in steps:
                step.ranking = ranking
                step.choice, step.reason = step.ranking[0], reason

    def _choose_stretches(self):
        """Chooses whether each stretch of the network for which the library has kernels is faster in one call of the library
        than layer by layer. Asked where not all of the fastest kernels of a stretch are the library's."""
        for stretch in self._stretches:
            steps = [step for step in stretch if isinstance(step, ConvBn)]
            fastest, own = ({step: pick(step) for step in steps} for pick in (_fastest, one_call.own_candidate))
            if own == fastest:
                continue

            key = remembered.key("frozen network", self.dtype, *((*s.key, own[s].name) for s in steps))
            ways = (one_call.OneCall, ByLayers)
            seconds = self._measured(key, ways, functools.partial(self._seconds_of, stretch, own, fastest))
            faster = seconds[one_call.OneCall] <= seconds[ByLayers]
            for step in steps:
                step.choice = (own if faster else fastest)[step]
                if faster and own[step] is not fastest[step]:
                    step.reason = f"in one call with other layers; alone: {step.reason}"

    def _seconds_of(self, stretch, own, fastest):
        """{OneCall: seconds with the choices `own`, ByLayers: seconds with the choices `fastest`}."""
        found = {}
        ways = (one_call.OneCall, own, [stretch]), (ByLayers, fastest, [[step] for step in stretch])
        for way, choices, parts in ways:
            for step, choice in choices.items():
                step.choice = choice
            self._load_layers(choices)
            calls = Calls(parts, self.dtype, (stretch[-1].output,), stretch[0].input)
            found[way] = measure.network(calls, self._input_of(stretch))
        return found

    @property
    def _stretches(self):
        return one_call.stretches(self._steps, self._results)

    def _input_of(self, stretch):
        """Values like those that `stretch` reads."""
        x = torch.randn(stretch[0].shape, device="cpu").to(self.dtype)
        return x if stretch[0].input == 0 else x.relu_().contiguous(memory_format=layout.CHANNELS_LAST)

    def _load(self):
        self._load_layers(self._convolutions)
        parts, whole = [], {stretch[0]: stretch for stretch in self._stretches if _is_own(stretch)}
        while (done := sum(map(len, parts))) < len(self._steps):
            parts.append(whole.get(self._steps[done], self._steps[done : done + 1]))
        self._calls = Calls(parts, self.dtype, self._results)
        self._inside = {step.output for part in parts if len(part) > 1 for step in part}

    def _load_layers(self, steps):
        for step in steps:
            step.run = step.choice(step, self.dtype)

    def _prove(self, example):
        """Checks that this is the network of the model, within its error budget.

        F(4x4,3x3) has 1.8 times the RMS error of a direct convolution in a layer in float32, and 2.9 times in bfloat16
        (docs/design/winograd.md). That fits the error budget of the networks that were measured, but other networks may
        exceed it. In bfloat16 folding alone leaves less than eager's error, so the logits must not be further off than
        eager's.
        """
        bf16 = self.dtype == torch.bfloat16
        few = example[: check.CHECKED if bf16 and self._f4_layers() else 1]
        expected = check.eager_and_oracle(self._model, few, self.dtype)
        errors = check.errors(self._model, self(few), few, expected)
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
                self._choose_stretches()
                self._load()
                for step in layers:
                    step.reason = f"F(4x4) dropped: the logits were {far}; {step.reason}"
                errors = check.errors(self._model, self(few), few, expected)
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

    def _refresh(self):
        self._load()

    def _is_torchs(self, step):
        inside = step.output in self._inside
        return super()._is_torchs(step) and not inside and not passes.is_pass(step)

    @property
    def memory(self):
        """{"activations", "parameters"} in bytes: of the maps of one call with the example's shape, and of the weights as
        they are packed."""
        activations = self._calls.activations(torch.zeros(self.example_shape, device="cpu"))
        return {"activations": activations, "parameters": self._calls.parameters}

    @torch.no_grad()
    @without_autocast
    def __call__(self, x):
        channels = self.example_shape[1]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"engine: x should be [N, {channels}, H, W], got {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise ValueError(f"engine: x is on {x.device}, the engine was frozen on cpu")
        if x.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"engine: x is {x.dtype}, the engine takes torch.float32 or {self.dtype}")
        return fill(self._result, self._calls(x))


def _is_own(stretch):
    return all(step.choice in one_call.KINDS for step in stretch if isinstance(step, ConvBn))


def _fastest(step):
    return step.ranking[0]


def _layer(step):
    """The kernel of `step` as check.worst_layer calls it. The residual is cloned, because a kernel may overwrite it."""
    return lambda x, residual, out: step.run(x) if residual is None else step.run(x, residual.clone())


@torch.no_grad()
def freeze_cpu(model, example, *, dtype=None, exact=False, f4_below=None, memory="fast"):
    """A `CpuEngine` for `model`, tuned for inputs of the shape of `example`; see `freeze` for the arguments and errors.

    f4_below: only layers with fewer channels may use F(4x4,3x3). None: the error of the logits of the example decides.
    """
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32 or torch.bfloat16, not {dtype}")
    if memory not in MEMORY:
        raise ValueError(f"freeze: memory should be 'fast' or 'small', not {memory!r}")
    if example.dim() != 4 or example.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example.shape)}")
    return CpuEngine(model, example, dtype, exact, f4_below, memory)._made(example)
