"""The interface of every engine, and the four steps in which an engine is made."""

import abc

import torch

from ..measure import remembered, timing
from . import file, network
from .export import FoldedResNet
from .network import ConvBn


class Engine(abc.ABC):
    """A frozen ResNet: `engine(x)` -> logits [N, num_classes] in the engine's dtype, without autograd.

    x: [N, 3, H, W] in float32 or the engine's dtype. x is converted and not modified. On a CPU every batch and size
    runs, on a GPU those of the example (see `freeze`). Calls from several threads are safe.

    Attributes:
        rows: for every convolution the kernel that runs it and the reason; on a GPU also for the head.
        notes: sentences about the whole engine, for `explain`.
    """

    def __init__(self, model, example, dtype, options):
        self._model, self.dtype, self.options = model, dtype, options
        self.device, self.example_shape = next(model.parameters()).device, tuple(example.shape)
        self.entries = {}  # the measurements behind the choices: {key: remembered.Entry}
        self.notes = []
        self._steps = network.read(model)
        self._convolutions = [step for step in self._steps if isinstance(step, ConvBn)]
        self._head = self._steps[-1]

    @torch.no_grad()
    def _made(self, example):
        """Runs the four steps that each kind of engine has, and returns the engine."""
        with timing.on(self.device):
            self._read(example)
            self._choose(example)
            self._load()
            self._prove(example)
        return self

    def _read(self, example):
        """Step 1: reads the shape of the input of every convolution."""
        shapes = {}
        seen = [
            (step.conv, lambda x, step=step: shapes.__setitem__(step, tuple(x.shape))) for step in self._convolutions
        ]
        network.observe(self._model, example, seen)
        for step in self._convolutions:
            step.shape = shapes[step]

    @abc.abstractmethod
    def _choose(self, example):
        """Step 2: measures, and chooses the fastest candidate for every part."""

    @abc.abstractmethod
    def _load(self):
        """Step 3: loads the weights, in the form that each chosen kernel reads."""

    @abc.abstractmethod
    def _prove(self, example):
        """Step 4: raises ValueError unless the engine computes what the model computes."""

    def _measured(self, key, candidates, measure):
        """{candidate: seconds per call} under `key`, from a file or this machine's table, otherwise from
        `measure()`."""
        by_name = {candidate.name: candidate for candidate in candidates}
        entry = remembered.remembered(self.device, key, by_name)
        if entry is None:
            entry = remembered.entry({candidate.name: s for candidate, s in measure().items()})
            remembered.table(self.device).store({key: entry})
        self.entries[key] = entry
        return {by_name[name]: seconds for name, seconds in entry.seconds.items()}

    @abc.abstractmethod
    def refresh(self):
        """Reads the model's weights and statistics again. Measurements and choices stay."""

    def save(self, path):
        """Writes the engine to a file that `resnet_fused.load_engine` reads (see frozen/file.py)."""
        file.save(self, path)

    def module(self):
        """The frozen network as an nn.Module of torch's own operators, for torch.export, AOTInductor and ONNX."""
        return FoldedResNet(self._steps, self.dtype)

    @property
    def dtype_name(self):
        return str(self.dtype).removeprefix("torch.")

    @property
    def rows(self):
        return [
            {
                "name": s.name, "op": s.op, "shape": s.shape, "dtype": self.dtype, "backend": s.choice.name,
                "reason": s.reason,
            }
            for s in self._convolutions
        ]  # fmt: skip

    @abc.abstractmethod
    def __call__(self, x): ...
