"""The calls that run a frozen network on a CPU: each runs a step, or a stretch of steps in one call of the library."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...kernels import layout
from ..network import ConvBn, InDtype
from .one_call import OneCall
from .passes import is_pass, pass_of


class Call(NamedTuple):
    """`run(*values)` -> value `output`. `dead`: the values that no later call reads."""

    run: Callable
    reads: tuple
    output: int
    dead: tuple = ()


class Calls:
    """`calls(x)` -> {number: value} of the values in `kept`. `parts`: lists of loaded steps in order; more than one step is
    one call of the library. x: value `first`."""

    def __init__(self, parts, dtype, kept, first=0):
        self.dtype, self.first = dtype, first
        calls = [_whole(part, dtype) if len(part) > 1 else _alone(part[0], dtype) for part in parts]
        last = {value: i for i, call in enumerate(calls) for value in call.reads}
        self.calls = [
            call._replace(dead=tuple({v for v in call.reads if last[v] == i and v not in kept}))
            for i, call in enumerate(calls)
        ]
        self._keep_residuals(parts)
        readers = [part for part, call in zip(parts, self.calls, strict=True) if first in call.reads]
        self.any_layout = len(readers) == 1 and (len(readers[0]) > 1 or _takes_any_layout(readers[0][0]))

    @property
    def one_call(self):
        """The OneCall that is all of it, or None."""
        run = self.calls[0].run
        return run if len(self.calls) == 1 and isinstance(run, OneCall) else None

    def _keep_residuals(self, parts):
        """A kernel writes its result over the residual. Where the residual is also what the kernel reads, or a later call reads
        it, or a value that may share its memory, the kernel gets a copy."""
        # What the caller has, and what torch's operators read or gave: one of them may be a view of another.
        shared = {self.first}
        for i, (part, call) in enumerate(zip(parts, self.calls, strict=True)):
            step = part[0]
            if not isinstance(step, ConvBn):
                shared |= {call.output, *call.reads}
            elif len(part) == 1 and step.adds:
                own = step.residual in call.dead and step.residual not in shared and step.residual != step.input
                self.calls[i] = call if own else call._replace(run=_OnACopy(call.run))

    @property
    def parameters(self):
        """Bytes of the weights of all calls."""
        return sum(_bytes_of(call.run) for call in self.calls)

    def activations(self, x):
        """Bytes of the values that are alive at once while `calls(x)` runs, at most."""
        most = 0

        def note(run, values):
            nonlocal most
            arena = max(map(len, run.arenas)) if isinstance(run, OneCall) else 0
            made = [y for value, y in values.items() if value != self.first and torch.is_tensor(y)]
            most = max(most, arena + sum(y.untyped_storage().nbytes() for y in made))

        self(x, note)
        return most

    def __call__(self, x, note=None):
        """`note(run, values)` is called after every call."""
        if not self.any_layout:
            x = x.to(self.dtype).contiguous(memory_format=layout.CHANNELS_LAST)
        values = {self.first: x}
        for run, reads, output, dead in self.calls:
            values[output] = run(*[values[value] for value in reads])
            if note is not None:
                note(run, values)
            for value in dead:
                del values[value]  # the next call may use its memory
        return values


def _whole(part, dtype):
    return Call(OneCall(part, dtype), (part[0].input,), part[-1].output)


def _alone(step, dtype):
    if isinstance(step, ConvBn):
        return Call(step.run, step.reads, step.output)
    return Call(pass_of(step) if is_pass(step) else InDtype(step, dtype), step.reads, step.output)


def _takes_any_layout(step):
    return isinstance(step, ConvBn) and getattr(step.run, "any_layout", False)


class _OnACopy:
    """`run(x, residual)` with a residual of its own."""

    def __init__(self, run):
        self.run = run

    def __call__(self, x, residual):
        return self.run(x, residual.clone())


def _bytes_of(run):
    """Bytes of the weights of a call."""
    if isinstance(run, OneCall):
        return run.constants.nbytes
    if isinstance(run, _OnACopy):
        return _bytes_of(run.run)
    if isinstance(run, InDtype):
        return sum(t.nbytes for t in run.module.state_dict().values())
    tensors = run.tensors if hasattr(run, "tensors") else (run.weight, run.bias)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
