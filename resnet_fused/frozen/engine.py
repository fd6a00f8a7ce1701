"""The interface of every engine, and the four steps in which an engine is made."""

import abc
import contextlib
import functools
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from ..measure import remembered, timing
from . import file
from .export import FoldedNetwork
from .function import Function
from .network import Apply, ConvBn, observe
from .read import read


def without_autocast(call):
    """Decorator of an engine's `__call__`: the caller's autocast does not change the dtypes of the engine."""

    @functools.wraps(call)
    def wrapped(self, x):
        if not torch.is_autocast_enabled(self.device.type):
            return call(self, x)
        with torch.autocast(self.device.type, enabled=False):
            return call(self, x)

    return wrapped


class Engine(abc.ABC):
    """A frozen network: `engine(x)` -> what the network returns (for a ResNet logits [N, num_classes]) in the engine's
    dtype, without autograd.

    x: [N, C, H, W] in float32 or the engine's dtype. x is converted and not modified. On a CPU every batch and size
    runs, on a GPU those of the example (see `freeze`). Calls from several threads are safe. `pickle` and `copy` take the
    way of `save` and `load_engine`: the engine is refreshed first, and its copy has the same kernels and no model.

    Attributes:
        rows: for every convolution the kernel that runs it and the reason; on a GPU also for the head.
        notes: sentences about the whole engine, for `explain`.
    """

    _unary = ()  # the names of function.UNARY that the engine's convolutions can apply

    def __init__(self, model, example, dtype, options):
        self._model, self.dtype, self.options = model, dtype, options
        self.device, self.example_shape = next(model.parameters()).device, tuple(example.shape)
        self.entries = {}  # the measurements behind the choices: {key: remembered.Entry}
        self.notes, self._head_shapes = [], {}
        self._steps, self._result, self._opaque = read(model, example, self._unary)
        self._convolutions = [step for step in self._steps if isinstance(step, ConvBn)]

    @torch.no_grad()
    def _made(self, example):
        """Runs the four steps that each kind of engine has, and returns the engine."""
        with timing.on(self.device):
            self._read(example)
            self._choose(example)
            self._load()
            self._prove(example)
        self.notes += self._parts()
        if loaded := sum(entry.disturbed for entry in self.entries.values()):
            self.notes.append(
                f"{loaded} of {len(self.entries)} measurements were made while other processes had the cores"
            )
        return self

    def _read(self, example):
        """Step 1: reads the shape of the input of every convolution and head."""
        observe(self._model, self._steps, example, self._see)

    def _see(self, step, x, y):
        """Gets the input of a convolution or head, and what its norm gives."""
        if isinstance(step, ConvBn):
            step.shape = tuple(x.shape)
        else:
            self._head_shapes[step] = tuple(x.shape)

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
            entry = remembered.store(self.device, key, _entry(measure()))
        self.entries[key] = entry
        return {by_name[name]: entry.seconds[name] for name in by_name}

    @torch.no_grad()
    def refresh(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Reads the model's weights and statistics again, or those of `state_dict`, which has the model's keys and shapes.
        The model stays as it is. Measurements, choices and a captured graph stay.

        Raises ValueError for a `state_dict` that does not fit, and the engine stays as it is.
        """
        with _weights_of(self._model, state_dict):
            self._refresh()

    @abc.abstractmethod
    def _refresh(self):
        """Reads the model's weights and statistics again."""

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the engine to a file that `resnet_fused.load_engine` reads (see frozen/file.py)."""
        file.save(self, path)

    def module(self) -> nn.Module:
        """The frozen network as an nn.Module of torch's own operators, for torch.export, AOTInductor and ONNX."""
        return FoldedNetwork(self._steps, self._result, self.dtype)

    def _parts(self):
        """Sentences about what no kernel of this package runs."""
        others = Counter(_kind(step.module) for step in self._steps if self._is_torchs(step))
        kinds = ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in others.most_common())
        found = [f"torch runs {kinds}"] if others else []
        return found + [f"{name} is called as it is: its forward {why}" for name, why in self._opaque.items()]

    def _is_torchs(self, step):
        """Whether torch runs `step`."""
        return isinstance(step, Apply)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "name": s.name, "op": s.op, "shape": s.shape, "dtype": self.dtype, "backend": s.choice.name,
                "reason": s.reason,
            }
            for s in self._convolutions
        ]  # fmt: skip

    @abc.abstractmethod
    def __call__(self, x: torch.Tensor) -> Any: ...


def _entry(seconds):
    """The Entry of {candidate: seconds}, with what Times know beside."""
    by_name = {candidate.name: s for candidate, s in seconds.items()}
    if not isinstance(seconds, timing.Times):
        return remembered.entry(by_name)
    spread = {candidate.name: round(share, 4) for candidate, share in seconds.spread.items()}
    return remembered.entry(by_name, spread=spread, load=round(seconds.load, 3))


def _kind(module):
    """What a module is, for a sentence."""
    if type(module) is torch.nn.Sequential:
        return "+".join(map(_kind, module))
    if not isinstance(module, Function):
        return type(module).__name__
    return _kind(module.target) if isinstance(module.target, torch.nn.Module) else module.extra_repr()


@contextlib.contextmanager
def _weights_of(model, state_dict):
    """`model` with the parameters and buffers of `state_dict`; after that, with its own."""
    if state_dict is None:
        yield
        return
    own = {name: t.clone() for name, t in model.state_dict().items()}
    if missing := own.keys() ^ state_dict.keys():
        name = sorted(missing)[0]
        where = "not in state_dict" if name in own else "not in the model"
        raise ValueError(f"refresh: {name} is {where} ({len(missing)} names differ)")
    for name, t in own.items():
        if t.shape != state_dict[name].shape:
            raise ValueError(f"refresh: {name} is {tuple(state_dict[name].shape)}, the model has {tuple(t.shape)}")
    try:
        model.load_state_dict(state_dict)
        yield
    finally:
        model.load_state_dict(own)
