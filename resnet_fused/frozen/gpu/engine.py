"""The engine of freeze() for GPUs: fixed shapes, fixed memory, one CUDA graph.

Every convolution is one layer of frozen/gpu/layers.py, the fastest of those within the error budget by measurement on this
device. Activations share memory by a plan; a call copies its input in, replays the graph and copies the logits out. With
`graph=False` the same engine runs call by call, on CPUs too: that is how it is tested without a GPU.
"""

import threading

import torch
import torch.nn.functional as F

from ...kernels import layout
from ...measure import remembered, timing
from ..freeze import Engine
from . import check, choose, layers, program
from .live import LiveCopy

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BATCH = ("exact", "pad")
FALLS_BACK = ("cuda",)  # device types whose engines give way to the live model; on CPUs there is a faster engine


class StaticEngine(Engine):
    """A frozen ResNet for inputs of one shape: `engine(x)` -> logits [N, num_classes] in the engine's dtype.

    x: like the example, in float32 or the engine's dtype, on its device. `batch="exact"`: any other batch is refused;
    "pad": smaller batches are filled up and larger ones cut into pieces, at the cost of the whole batch each.
    Thread-safe: calls take turns. On a GPU a call runs on the current stream, after the previous call has finished.

    Attributes:
        rows: for every convolution and the head what runs it and why.
        memory: {"activations", "parameters"} in bytes; activations None where the live model runs, in torch's memory.
        seconds: {"engine", "live"}: medians per call, measured when freezing.
    """

    def __init__(self, model, example, dtype, graph, batch):
        self.batch, self.shape = batch, tuple(example.shape)
        self.device, self.graphed = example.device, graph
        self._lock, self._graph, self._program = threading.Lock(), None, None
        self._x = self._logits = self._live = None
        super().__init__(model, example, dtype, False)
        self.options = {"graph": graph, "batch": batch}
        self._program, plan, stored = program.arrange(self._stem, self._pool, self._blocks, dtype)
        self._places = plan.allocate(stored, self.device)
        own = [t for part in self._parts for t in part.tensors.values()]
        self.memory = {"activations": sum(plan.sizes), "parameters": sum(t.nbytes for t in own)}
        if graph:
            self._capture()
        self._verify(example)
        self._measured_beside_live(example)

    def _tune(self, without):
        self._pairs, self._head_way, self._head_reason = choose.choose(self)

    def _check(self, example):
        """Later, when there is a program: `_verify`."""

    def _verify(self, example):
        """Layer by layer where the whole is not within its error budget."""
        check.check(self, example)

    @torch.no_grad()
    def refresh(self):
        """Reads the model's weights and statistics again, into the memory that the graph reads."""
        with self._lock:
            if self._program is not None:
                for part in self._parts if self._live is None else [self._live]:
                    part.load()
                return
            for block, way in self._pairs.items():
                block.pair = way.make(block, self.dtype)
                block.sites[0].run, block.projection.run = block.pair.first, block.pair.second
            for site in self._sites:
                if site.way.make is not None:  # not one of a pair
                    site.run = site.way.make(site, self.dtype)
            self._head = self._head_way.make(self._model, self.dtype)
            self._parts = [*(site.run for site in self._sites), self._head]

    def _forward(self, x):
        if self._live is not None:
            return self._live(x)
        return self._head(program.run(self._program, self._places, x))

    def _measured_beside_live(self, example):
        """Where the layers are slower together than the live model, for all that each was the fastest alone, a snapshot of
        that model runs instead, if it keeps up in the engine's dtype and graph; else a warning says so."""
        frozen = check.compare(self, example)
        self.seconds = {name: t.median for name, t in frozen.items()}
        if self.device.type not in FALLS_BACK or frozen["engine"].p20 <= frozen["live"].p80:
            return
        before = self._x, self._graph, self._logits
        try:
            self._live = LiveCopy(self._model, self.dtype)
            if self.graphed:
                self._capture()
            live = check.compare(self, example)
            gained = frozen["engine"].median / frozen["live"].median > live["engine"].median / live["live"].median
            taken = gained and check.share(self, example) <= 1
        except RuntimeError:  # a model with an operator that no graph captures, or no memory for a second one
            taken = False
        if not taken:
            self._live, (self._x, self._graph, self._logits) = None, before
            check.warn_of_slowness(self.seconds)
            return
        slow, fast = (remembered.duration(t["engine"].median) for t in (frozen, live))
        self._live_reason = f"measured: the live model, frozen whole: {fast}; layer by layer: {slow}"
        self.seconds = {name: t.median for name, t in live.items()}
        self.memory = {"activations": None, "parameters": self._live.nbytes}
        self._program, self._places, self._parts, self._head = (), (), [], None
        for site in self._sites:
            site.run = None
        for block in self._blocks:
            block.pair = None

    @property
    def rows(self):
        rows = super().rows
        rows.append({
            "name": "avgpool+fc", "op": "pool_linear", "dtype": self.dtype, "reason": self._head_reason,
            "shape": layers.out_shape(self._blocks[-1].sites[-1]), "backend": self._head_way.name,
        })  # fmt: skip
        if self._live is not None:
            rows = [row | {"backend": "live", "reason": self._live_reason} for row in rows]
        return rows

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


def check_arguments(model, example, graph, batch):
    """Raises ValueError for what no engine of fixed shapes is made of."""
    if batch not in BATCH:
        raise ValueError(f"freeze: batch should be 'exact' or 'pad', not {batch!r}")
    if example.dim() != 4 or example.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example.shape)}")
    device = next(model.parameters()).device
    if example.device != device:
        raise ValueError(f"freeze: example_input is on {example.device}, the model on {device}")
    if graph and device.type != "cuda":
        raise ValueError(f"freeze: graph=True needs a model on a CUDA device, not on {device}")


@torch.no_grad()
def freeze_static(model, example, *, dtype=None, graph=True, batch="exact"):
    """A `StaticEngine` for `model` on inputs of the shape of `example`; see `freeze` for the arguments and errors."""
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    check_arguments(model, example, graph, batch)
    return StaticEngine(model, example, dtype, graph, batch)
