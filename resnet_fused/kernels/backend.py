"""What a backend declares. `table` lists all backends; no other module names one."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from .epilogue import NONE, RELU

# Kernels for whole residual blocks, made of other kernels of their backend: these are checked and trusted one by one.
IN_EVALUATION = ("residual_block", "conv_block")
IN_TRAINING = ("training_blocks", "training_blocks_backward")
WHOLE = IN_EVALUATION + IN_TRAINING
ANY = "any"  # device of a backend that takes tensors of every device


class Kernels(Mapping):
    """{op: launcher}. A launcher is looked up at its first use: a backend is declared before its library or compiler is
    loaded."""

    def __init__(self, ops: Iterable[str], find: Callable[[str], Callable]):
        self.ops, self.find = dict.fromkeys(ops), find

    def __getitem__(self, op):
        self.ops[op]  # raises KeyError for an unknown op
        return self.find(op)

    def get(self, op, default=None):
        return self.find(op) if op in self.ops else default

    def __contains__(self, op):
        return op in self.ops

    def __iter__(self):
        return iter(self.ops)

    def __len__(self):
        return len(self.ops)


def _nothing_refused(op, convolution):
    return None


def _always(op, convolution):
    return True


def _no_configurations(op, convolution):
    return []


class Backend(NamedTuple):
    """A way to run ops. `convolution`: a `shapes.Convolution`, None for an op that is no convolution.

    A launcher gets tensors and writes into them. kernels/cuda.py has the signature of every op's launcher. The launcher
    of a convolution also takes `config`, a launch configuration as a dictionary. A launcher that returns False has
    found values for which its result is wrong (see `for_any_values`). The op is then composed of torch's convolution
    and a pass.
    """

    name: str
    device: str  # type of the device that the backend is made for, or ANY
    why_not: Callable[[torch.device], str | None]  # why the backend cannot run on a device
    # op -> launcher; None: the op is composed of other ops, which are dispatched
    kernels: Mapping[str, Callable | None]
    refusal: Callable = _nothing_refused  # (op, convolution) -> why the backend does not run it, or None
    suits: Callable = _always  # (op, convolution) -> whether the backend is worth a measurement
    configurations: Callable = _no_configurations  # (op, convolution) -> [config] worth measuring beside the default
    activations: tuple[int, ...] = (NONE, RELU)  # of its convolutions; after any other activation a pass follows
    otherwise: str = "torch"  # the backend that runs what this backend does not run
    # (op, convolution) -> (whether the backend runs it by default, why the backend does or why torch's convolution
    # does). None: the backend never runs by default.
    default: Callable | None = None
    simulated: str | None = None  # device type whose tensors an interpreter or emulator takes: right, but slow
    compiles: bool = False  # whether a new configuration takes a compiler's time
    for_any_values: bool = True  # whether no launcher ever returns False; a caller then needs no other backend
    clusters: tuple[str, ...] = ()  # ops some of whose configurations use clusters of blocks
    proves: bool = False  # whether each kernel is checked on a device before it first runs there (measure/trust)
    module: str = ""  # of a backend that is not in `table`: the module that has it as a constant, for the check

    def takes(self, device_type):
        return self.device == device_type or self.device is ANY or self.simulated == device_type
