"""Which backend every fused op of a model takes, and why: one forward pass, watched.

The name of a row comes from the tensors: the ops get a module's own parameters and buffers, so the watcher looks up whose
they are. That needs no hook on the children of a block; a hook would switch fusion off.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .. import dispatch
from ..conversion.convert import candidates, why_not_converted
from ..kernels import layout
from ..kernels.epilogue import ACTIVATIONS, NONE, RELU
from ..modules.eligible import blind
from . import table
from .explain_training import names as names_in_training

COLUMNS = {"name": "layer", "op": "op", "shape": "shape", "dtype": "dtype", "backend": "backend", "reason": "reason"}


class Report:
    """`rows`: one dict per op in order of execution, with the keys of COLUMNS; `notes`: sentences about the whole; `str()` is
    a table and the notes."""

    def __init__(self, rows: list[dict[str, Any]], notes: Iterable[str] = ()) -> None:
        self.rows, self.notes = rows, list(notes)

    def __str__(self) -> str:
        return "\n".join([table.render(COLUMNS, self.rows), *map(table.fit, self.notes)])


def explain(model: Callable[[Tensor], Any], x: Tensor) -> Report:
    """Runs `model` on `x` once, without gradients and in its present mode, and reports what every fused op did.

    Running statistics are put back afterwards. A block that runs module by module has one row, of backend "modules"; so has
    one that `convert` would fuse or has left alone, and a convolution in a converted block that cannot be fused.
    What a backward pass would use is not part of the report. An engine of `freeze` reports what it was built of.
    """
    if hasattr(model, "rows"):
        return Report([_row(**row) for row in model.rows], getattr(model, "notes", ()))
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper: the watcher must see every op
    rows, unfused, copied = [], set(), {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_restored(model))
        stack.enter_context(torch.no_grad())
        for name, module, why in _watched(model):
            hook = blind(_note(rows, unfused, name, why))  # any other hook may change the layout of what follows
            stack.callback(module.register_forward_pre_hook(hook).remove)
        recorded = stack.enter_context(dispatch.record())
        stack.enter_context(_Watcher(model, rows, unfused, recorded, copied))
        model(x)
    return Report(rows, [_copies(copied)] if copied else ())


def _copies(copied):
    """The note about weights {id: bytes} whose layout no kernel reads."""
    return (
        f"{len(copied)} weights are not channels_last: each forward copies them, {sum(copied.values()) / 1e6:.1f} MB; "
        "model.to(memory_format=torch.channels_last) avoids the copies"
    )


@contextlib.contextmanager
def _restored(model):
    """Context manager: puts the buffers back that a forward pass in training mode changes."""
    before = [(b, b.clone()) for b in model.buffers()] if any(m.training for m in model.modules()) else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _watched(model):
    """(name, module, why) of every module that may run module by module; why(module, input): the reason, or None if it is
    fused."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "why_not_fused"):
            yield name, module, lambda module, x: module.why_not_fused(x)
        program = getattr(type(module), "_program", None)  # of a converted module
        for path, reason in program.unfused if program else ():
            yield f"{name}.{path}".strip("."), module.get_submodule(path), lambda module, x, reason=reason: reason
    for name, module in list(candidates(model)):
        reason = f"not converted: {why_not_converted(module) or 'convert() would fuse it'}"
        yield name, module, lambda module, x, reason=reason: reason


def _note(rows, unfused, name, why):
    """The hook that adds a row for a module that is not fused on the input of this pass."""

    def hook(module, args):
        x = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if x is not None and (reason := why(module, x)) is not None:
            unfused.add(name)
            rows.append(_row(name or "stem", type(module).__name__, x.shape, x.dtype, "modules", reason))

    return hook


def _row(name, op, shape, dtype, backend, reason):
    return {
        "name": name, "op": op, "shape": "x".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch."),
        "backend": backend, "reason": reason,
    }  # fmt: skip


class _Watcher(TorchDispatchMode):
    """Turns the choices that a fused op records while it runs into rows with the names of the modules whose tensors it got."""

    def __init__(self, model, rows, unfused, recorded, copied):
        super().__init__()
        self.rows, self.unfused, self.recorded, self.copied = rows, unfused, recorded, copied
        self.owner = {
            id(tensor): name
            for name, module in model.named_modules()
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = len(self.recorded)
        out = func(*args, **(kwargs or {}))
        named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | (kwargs or {})
        flat = [t for value in named.values() for t in (value if isinstance(value, list) else [value])]
        owners = list(dict.fromkeys(self.owner[id(t)] for t in flat if id(t) in self.owner))
        if func.namespace == "resnet_fused":
            self._note_copies(flat, self.recorded[first:])
            ops = [op for op, _, _ in self.recorded[first:]]
            if "tensors" in named:  # a whole block in training, or the stem
                found = names_in_training(ops, *args[1:5], self.owner)
            else:
                found = [_name(owners, op, named) for op in ops]
            for name, (op, (shape, dtype, _), choice) in zip(found, self.recorded[first:], strict=True):
                self.rows.append(_row(name, op, shape, dtype, choice.backend, choice.reason))
        elif "batch_norm" in func.name() and owners and not self._by_modules(owners[0]):
            why = "torch's own operator: not in a fused block, or tensors that no kernel takes"
            self.rows.append(_row(owners[0], "batch_norm", args[0].shape, args[0].dtype, "eager", why))
        return out

    def _note_copies(self, tensors, recorded):
        """Notes the weights that the kernels of a GPU cannot read as they are."""
        kernels = (dispatch.BACKENDS[choice.backend] for op, _, choice in recorded if op.startswith("conv"))
        if any(backend.device == "cuda" for backend in kernels):
            for t in tensors:
                if id(t) in self.owner and t.dim() == 4 and not layout.is_channels_last(t):
                    self.copied[id(t)] = t.nbytes

    def _by_modules(self, name):
        parent = name.rpartition(".")[0]
        return parent in self.unfused or parent.rpartition(".")[0] in self.unfused  # the latter: a downsample


def _name(owners, op, named):
    """Such as layer1.0.conv2+bn2+add+relu: the modules whose tensors the op got, and the sum, ReLU and pool in the same op."""
    if not op.startswith("conv") and len(owners) > 1:
        owners = owners[1:]  # the pass after torch's convolution: its batch norm alone
    parent = owners[0].rpartition(".")[0] if owners else ""
    parts = (
        [".".join(filter(None, (parent, "+".join(name[len(parent) :].lstrip(".") for name in owners))))]
        if owners
        else []
    )
    parts += ["add"] * (named.get("residual") is not None or op.startswith("add"))
    implied = RELU if op.startswith("add") or op.endswith(("pool", "pair")) else NONE
    activation = named.get("activation", implied)
    parts += [ACTIVATIONS[activation]] * (activation != NONE)
    parts += ["maxpool"] * op.endswith("pool")
    return "+".join(parts) or op
