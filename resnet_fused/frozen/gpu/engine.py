"""The engine of freeze() for GPUs: fixed shapes, fixed memory, one CUDA graph.

Every convolution is a layer of frozen/gpu/layers.py: the fastest within the error budget, by measurement on this
device. Activations share memory by a plan. A call copies its input in, replays the graph and copies the logits out.
With `graph=False` the engine launches kernel by kernel, on CPUs too: that is how it is tested without a GPU.
"""

import copy

import torch

from ...kernels import layout
from ...measure import remembered
from .. import check
from ..engine import Engine, without_autocast
from . import choose, measure
from .program import Program
from .replay import Replay, check_arguments, first_images

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FALLS_BACK = ("cuda",)  # device types where the live model may replace the layers; CPUs have a faster engine


class GpuEngine(Engine):
    """An `Engine` for inputs of one shape, the shape of the example, on its device.

    `batch="exact"`: another batch is refused. "pad": smaller batches are filled up and larger ones are cut into pieces,
    and each piece costs as much as the whole batch. One call runs at a time. On a GPU a call runs on the current
    stream, after the previous call.

    Attributes, besides those of Engine:
        memory: {"activations", "parameters"} in bytes; activations is None where the live model runs, in torch's memory.
        seconds: {"engine", "live"}: medians per call, measured when freezing.
    """

    def __init__(self, model, example, dtype, graph, batch):
        super().__init__(model, example, dtype, {"graph": graph, "batch": batch})
        self.batch, self.graphed, self.seconds = batch, graph, {}
        self._program = self._replay = self._pairs = self._ends = None

    def _choose(self, example):
        choose.convolutions(self, self._convolutions)
        self._pairs, self._ends = choose.pairs(self), choose.heads(self)

    def _load(self):
        in_pairs = {}
        for pair, candidate in self._pairs.items():
            layer = in_pairs[pair] = candidate.make(pair, self.dtype)
            pair[0].run, pair[1].run = layer.first, layer.second
        for step in self._convolutions:
            if step.choice.make is not None:  # not a member of a pair
                step.run = step.choice.make(step, self.dtype)
        heads = {head: chosen.candidate.make(head, self.dtype) for head, chosen in self._ends.items()}
        self._use(Program(self._steps, self._result, heads, in_pairs, self.dtype, self.device))

    def _use(self, function):
        """Makes `function`, a program or a live model, what the engine runs."""
        self._program = function
        self._replay = Replay(function, self.example_shape, self.dtype, self.device, self.graphed, self.batch)
        self.memory = function.memory

    def _errors(self, example):
        few = example[: check.CHECKED].to(self.dtype)
        return check.errors(self._model, first_images(self(example), len(few)), few)

    def _prove(self, example):
        """Checks the whole network; checks layer by layer where the whole is not within its error budget; compares with
        the live model's speed."""
        errors = self._errors(example)
        if errors.absurd:
            self.notes.append(errors.absurd)
        if errors.share > 1:
            few = example[: check.CHECKED].to(self.dtype)
            check.refuse(self.dtype, errors.share, check.worst_layer(self._steps, lambda step: step.run, few))
        self._compare_with_live(example)

    def _compare_with_live(self, example):
        """Where all layers together are slower than the live model, a snapshot of that model runs instead, if it is as
        fast in the engine's dtype and graph. Otherwise a warning says so. Each layer was the fastest alone, but that
        does not make the sum fastest."""
        frozen = measure.beside_live(self, example)
        self.seconds = {name: t.median for name, t in frozen.items()}
        if self.device.type not in FALLS_BACK or frozen["engine"].p20 <= frozen["live"].p80:
            return
        before = self._program, self._replay, self.memory
        try:
            self._use(LiveCopy(self._model, self.dtype))
            live = measure.beside_live(self, example)
            gained = frozen["engine"].median / frozen["live"].median > live["engine"].median / live["live"].median
            taken = gained and self._errors(example).share <= 1
        except RuntimeError:  # no graph captures an operator of the model, or there is no memory for a second one
            taken = False
        if not taken:
            self._program, self._replay, self.memory = before
            measure.warn_of_slowness(self.seconds)
            return
        slow, fast = (remembered.duration(t["engine"].median) for t in (frozen, live))
        self._program.reason = f"measured: the live model, frozen whole: {fast}; layer by layer: {slow}"
        self.seconds = {name: t.median for name, t in live.items()}
        for step in self._convolutions:
            step.run = None

    @torch.no_grad()
    def _refresh(self):
        """Reads them into the memory that the graph reads."""
        with self._replay.lock:
            self._program.load()

    @property
    def rows(self):
        rows = [*super().rows, *head_rows(self)]
        if isinstance(self._program, LiveCopy):
            rows = [row | {"backend": "live", "reason": self._program.reason} for row in rows]
        return rows

    @torch.no_grad()
    @without_autocast
    def __call__(self, x):
        return self._replay(x)


class LiveCopy:
    """A snapshot of the live model: `__call__(x)` -> logits of the model as it was at the last load, in `dtype` and
    evaluation mode."""

    reason = ""

    def __init__(self, model, dtype):
        self.model = model
        self.copy = copy.deepcopy(model).eval().to(dtype, memory_format=layout.CHANNELS_LAST).requires_grad_(False)
        self.memory = {"activations": None, "parameters": sum(t.nbytes for t in self.copy.state_dict().values())}

    @torch.no_grad()
    def load(self):
        """Reads the model's parameters and buffers again, into the same memory."""
        theirs = self.model.state_dict(keep_vars=True)
        for name, mine in self.copy.state_dict(keep_vars=True).items():
            mine.copy_(theirs[name])

    def __call__(self, x):
        return self.copy(x)


def head_rows(engine):
    """The rows of the heads among an engine's `rows`."""
    return [
        {
            "name": f"avgpool+{head.name}", "op": "pool_linear", "dtype": engine.dtype, "reason": chosen.reason,
            "shape": engine._head_shapes[head], "backend": chosen.candidate.name,
        }
        for head, chosen in engine._ends.items()
    ]  # fmt: skip


@torch.no_grad()
def freeze_gpu(model, example, *, dtype=None, graph=True, batch="exact"):
    """A `GpuEngine` for `model` on inputs of the shape of `example`; see `freeze` for the arguments and errors."""
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    check_arguments(model, example, graph, batch)
    return GpuEngine(model, example, dtype, graph, batch)._made(example)
