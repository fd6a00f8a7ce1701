"""What a backend declares of itself. `table` lists all of them; nothing else knows one by its name."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .epilogue import NONE, RELU

ANY = "any"  # device of a backend that takes tensors wherever they are


class Kernels(Mapping):
    """{op: launcher}, each found when it is asked for: a backend is declared before its library or compiler is loaded."""

    def __init__(self, ops: Iterable[str], find: Callable[[str], Callable]):
        self.ops, self.find = dict.fromkeys(ops), find

    def __getitem__(self, op):
        self.ops[op]  # a KeyError for another
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

    A launcher gets tensors and writes into them: kernels/cuda.py has the signature of each op's. That of a convolution also
    takes `config`, a launch configuration as a dictionary. A launcher that returns False has found values that it does not
    compute rightly (see `for_any_values`), and the op is composed of torch's convolution and a pass instead.
    """

    name: str
    device: str  # type of the device that it is made for, or ANY
    why_not: Callable[[], str | None]  # why it cannot run here
    kernels: Mapping[str, Callable | None]  # op -> launcher; None: the op is composed of others, each dispatched anew
    refusal: Callable = _nothing_refused  # (op, convolution) -> why it does not run this one, or None
    suits: Callable = _always  # (op, convolution) -> whether it is worth a measurement
    configurations: Callable = _no_configurations  # (op, convolution) -> [config] worth measuring beside the default
    activations: tuple[int, ...] = (NONE, RELU)  # that its convolutions have; before another one a pass follows
    otherwise: str = "torch"  # the backend that runs what this one does not
    # (op, convolution) -> (whether it runs this by default, why it does or torch's convolution does); None: it never does
    default: Callable | None = None
    simulated: str | None = None  # device type whose tensors it takes in an interpreter or emulator: right, but slow
    compiles: bool = False  # a configuration that is new takes a compiler's time
    for_any_values: bool = True  # its launchers never return False, so whoever keeps one needs no other way

    def takes(self, device_type):
        return self.device == device_type or self.device is ANY or self.simulated == device_type

    def able(self, op, device_type):
        """Whether it runs `op` on such a device here."""
        return op in self.kernels and self.takes(device_type) and self.why_not() is None

    def worth_measuring(self, op, device_type, convolution=None):
        """Whether it runs `op` on such a device in earnest, and may be the fastest for this convolution."""
        if not self.able(op, device_type) or self.simulated == device_type:
            return False
        return convolution is None or (self.refusal(op, convolution) is None and self.suits(op, convolution))

    def why_not_op(self, op, convolution=None):
        """Why this one does not run here, or None."""
        if op not in self.kernels:
            return f"{self.name} has no kernel for {op}"
        return None if convolution is None else self.refusal(op, convolution)
