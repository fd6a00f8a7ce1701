"""Runs a function of images of one shape, in a CUDA graph or call by call. Batches of other sizes run in pieces."""

import threading

import torch
import torch.nn.functional as F

from ...kernels import layout
from ...measure import timing
from ..function import mapped

BATCH = ("exact", "pad")


class Replay:
    """`replay(x)` -> `function(x)`, for x of `shape` in float32 or `dtype`. `batch="exact"`: another batch is refused.
    "pad": smaller batches are filled up and larger ones are cut into pieces. `graphed`: a call copies the input in,
    replays the graph and copies the result out, on the current stream, after the previous call has finished. One call
    runs at a time."""

    def __init__(self, function, shape, dtype, device, graphed, batch):
        self.function, self.shape, self.dtype, self.device, self.batch = function, shape, dtype, device, batch
        self.lock, self.graph = threading.Lock(), None
        if graphed:
            self._capture()

    def _capture(self):
        self.x = torch.zeros(self.shape, dtype=self.dtype, device=self.device).to(memory_format=layout.CHANNELS_LAST)
        results = []
        self.graph = timing.capture([lambda: results.append(self.function(self.x))])
        self.result = results[-1]  # the result of the capture; the others are results of the warm-up
        self.done = torch.cuda.Event()

    def __call__(self, x):
        self._check(x)
        full = self.shape[0]
        if x.shape[0] == full:
            return self._run(x)
        pieces = [first_images(self._run(piece), len(piece)) for piece in x.split(full)]
        return mapped(lambda *parts: torch.cat(parts), *pieces)

    def _check(self, x):
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
        """The result for up to the full batch. Rows past the images of x mean nothing."""
        with self.lock:
            if self.graph is None:
                return self.function(self.filled(x))
            with torch.cuda.device(self.device):
                stream = torch.cuda.current_stream()
                stream.wait_event(self.done)  # the last call may still run on another stream
                self.x[: x.shape[0]].copy_(x)
                self.graph.replay()
                result = mapped(torch.clone, self.result)
                self.done.record(stream)
            return result

    def filled(self, x):
        """`x` in the dtype and layout of the function, with zeros for missing images."""
        x = layout.in_format(x.to(self.dtype), layout.CHANNELS_LAST)
        missing = self.shape[0] - x.shape[0]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)).to(memory_format=layout.CHANNELS_LAST) if missing else x


def first_images(result, images):
    """What a network returns, without the results of images after the first `images`."""
    return mapped(lambda t: t[:images], result)


def check_arguments(model, example, graph, batch):
    """Raises ValueError for arguments that an engine of fixed shapes cannot have."""
    if batch not in BATCH:
        raise ValueError(f"freeze: batch should be 'exact' or 'pad', not {batch!r}")
    if example.dim() != 4 or example.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example.shape)}")
    device = next(model.parameters()).device
    if example.device != device:
        raise ValueError(f"freeze: example_input is on {example.device}, the model on {device}")
    if graph and device.type != "cuda":
        raise ValueError(f"freeze: graph=True needs a model on a CUDA device, not on {device}")
