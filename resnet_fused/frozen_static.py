"""The engine of freeze() for GPUs: fixed shapes, fixed memory, one CUDA graph.

Every convolution is one layer of frozen_layers.py, the fastest of those within the error budget by measurement on this
device. Activations share memory by a plan; a call copies its input in, replays the graph and copies the logits out. With
`graph=False` the same engine runs call by call, on CPUs too: that is how it is tested without a GPU.
"""

import functools
import itertools
import math
import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import dispatch, frozen_check, frozen_layers, frozen_program, layout, timing, tuning
from .freeze import Engine

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BATCH = ("exact", "pad")


class Way(NamedTuple):
    """A kind of layer that may run a site; `make(site, dtype)`."""

    name: str
    make: object


class StaticEngine(Engine):
    """A frozen ResNet for inputs of one shape: `engine(x)` -> logits [N, num_classes] in the engine's dtype.

    x: like the example, in float32 or the engine's dtype, on its device. `batch="exact"`: any other batch is refused;
    "pad": smaller batches are filled up and larger ones cut into pieces, at the cost of the whole batch each.
    Thread-safe: calls take turns. On a GPU a call runs on the current stream, after the previous call has finished.

    Attributes:
        rows: for every convolution what runs it and why.
        memory: {"activations", "parameters"} in bytes.
        seconds: {"engine", "live"}: medians per call, measured when freezing.
    """

    def __init__(self, model, example, dtype, graph, batch):
        self.batch, self.shape = batch, tuple(example.shape)
        self.device, self.graphed = example.device, graph
        self._lock, self._graph, self._program = threading.Lock(), None, None
        super().__init__(model, example, dtype, False)
        self.options = {"graph": graph, "batch": batch}
        self._program, plan = frozen_program.arrange(self._stem, self._pool, self._blocks)
        self._places = plan.allocate(dtype, self.device)
        own = [t for site in self._sites for t in site.run.tensors.values()] + self._fc
        self.memory = {"activations": plan.nbytes(dtype.itemsize), "parameters": sum(t.nbytes for t in own)}
        if graph:
            self._capture()
        frozen_check.check(self, example)
        self.seconds = frozen_check.compare(self, example)

    def _tune(self, without):
        groups = {}
        for site in self._sites:
            groups.setdefault(site.key, []).append(site)
        for sites in groups.values():
            found = frozen_layers.options(sites[0], self.dtype, self.device)
            able = [Way(name, make) for name, make in found.items()]
            choice, reason = able[0], "the only way for this layer"
            if len(able) > 1:
                seconds = self._seconds(sites, able, 0.2)
                choice = min(seconds, key=seconds.get)
                reason = self.entries[self._key(sites[0])].reason()
            for site in sites:
                site.way, site.reason = choice, reason

    def _measure(self, sites, able, budget):
        """{way: seconds per call} of those within the error budget, in turn over some sites so that no weight is hot."""
        x = torch.randn(sites[0].shape, device=self.device).relu_().to(self.dtype)
        x = layout.in_format(x, layout.CHANNELS_LAST)
        shape = frozen_layers.out_shape(sites[0])
        out = torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=layout.CHANNELS_LAST)
        residual = torch.randn_like(out) if sites[0].residual else None
        runs = {}
        for way in able:
            try:
                layers = [way.make(site, self.dtype) for site in sites[:3]]
                if frozen_check.layer_shares(sites[0], layers[0], x, residual, out)[0] <= 1:
                    runs[way] = self._run_of([functools.partial(layer, x, residual, out) for layer in layers])
            except (
                Exception
            ):  # whatever a compiler or a launch raises (Triton's errors are no RuntimeError): another will do
                continue
        if not runs:
            raise ValueError(f"freeze: nothing runs {sites[0].name} within the error budget in {self.dtype}")
        clock = timing.cuda_clock if self.device.type == "cuda" else None
        timings = timing.interleaved(
            {way: run for way, (run, _) in runs.items()},
            seconds=budget,
            min_rounds=3,
            device=self.device.type,
            clock=clock,
        )
        # Infinite: tried, and never to be chosen.
        return dict.fromkeys(able, math.inf) | {way: t.median / runs[way][1] for way, t in timings.items()}

    def _key(self, site):
        precision = dispatch.tf32_allowed() if self.dtype == torch.float32 else None
        return tuning.key("static", self.dtype, *site.key, precision, "graph" if self.graphed else "calls")

    def _run_of(self, functions):
        """(function, calls in it): as the engine will run them, in a graph or one by one."""
        if self.graphed:
            return timing.capture(functions).replay, len(functions)
        turns = itertools.cycle(functions)
        return lambda: next(turns)(), 1

    @torch.no_grad()
    def refresh(self):
        """Reads the model's weights and statistics again, into the memory that the graph reads."""
        fc = self._model.fc
        values = [fc.weight.detach().to(self.dtype)]
        values += [] if fc.bias is None else [fc.bias.detach().to(self.dtype)]
        with self._lock:
            if self._program is None:
                for site in self._sites:
                    site.run = site.way.make(site, self.dtype)
                self._fc = [value.clone() for value in values]
                return
            for site in self._sites:
                site.run.load()
            for mine, value in zip(self._fc, values, strict=True):
                mine.copy_(value)

    def _forward(self, x):
        x = frozen_program.run(self._program, self._places, x)
        return F.linear(torch.flatten(self._model.avgpool(x), 1), *self._fc)

    def _capture(self):
        self._x = torch.zeros(self.shape, dtype=self.dtype, device=self.device).to(memory_format=layout.CHANNELS_LAST)
        results = []
        self._graph = timing.capture([lambda: results.append(self._forward(self._x))])
        self._logits = results[-1]  # of the capture; the others are of the warm-up
        self._done = torch.cuda.Event()

    @torch.no_grad()
    def __call__(self, x):
        self._accept(x)
        full = self.shape[0]
        if x.shape[0] == full:
            return self._run(x)
        pieces = [self._run(piece)[: len(piece)] for piece in x.split(full)]
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def _accept(self, x):
        wanted = f"[{self.shape[0] if self.batch == 'exact' else 'N'}, {', '.join(map(str, self.shape[1:]))}]"
        if x.dim() != 4 or x.shape[1:] != self.shape[1:] or (self.batch == "exact" and x.shape[0] != self.shape[0]):
            advice = "; freeze with batch='pad' or another example" if self.batch == "exact" else ""
            raise ValueError(f"engine: x should be {wanted}, got {tuple(x.shape)}{advice}")
        if x.shape[0] == 0:
            raise ValueError("engine: x is an empty batch")
        if x.device != self.device:
            raise ValueError(f"engine: x is on {x.device}, the engine was frozen on {self.device}")
        if x.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"engine: x is {x.dtype}, the engine takes torch.float32 or {self.dtype}")

    def _run(self, x):
        """Logits of up to the frozen batch; rows past it are of no image."""
        with self._lock:
            if self._graph is None:
                return self._forward(self._filled(x))
            with torch.cuda.device(self.device):
                stream = torch.cuda.current_stream()
                stream.wait_event(self._done)  # the last call may still run, on another stream
                self._x[: x.shape[0]].copy_(x)
                self._graph.replay()
                logits = self._logits.clone()
                self._done.record(stream)
            return logits

    def _filled(self, x):
        x = layout.in_format(x.to(self.dtype), layout.CHANNELS_LAST)
        missing = self.shape[0] - x.shape[0]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)).to(memory_format=layout.CHANNELS_LAST) if missing else x


@torch.no_grad()
def freeze_static(model, example, *, dtype=None, graph=True, batch="exact"):
    """A `StaticEngine` for `model` on inputs of the shape of `example`; see `freeze` for the arguments and errors."""
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    if batch not in BATCH:
        raise ValueError(f"freeze: batch should be 'exact' or 'pad', not {batch!r}")
    if example.dim() != 4 or example.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example.shape)}")
    device = next(model.parameters()).device
    if example.device != device:
        raise ValueError(f"freeze: example_input is on {example.device}, the model on {device}")
    if graph and device.type != "cuda":
        raise ValueError(f"freeze: graph=True needs a model on a CUDA device, not on {device}")
    return StaticEngine(model, example, dtype, graph, batch)
