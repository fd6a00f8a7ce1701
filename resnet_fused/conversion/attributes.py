"""What else a program depends on: plain attributes that the forward may read, and which children a module has.

A trace has read them once. Every call compares them with what they were then; that is cheaper and safer than to trace anew
when one is set, and holds for changes behind the back of `__setattr__` too.
"""

import torch
from torch import nn

from ..modules.eligible import is_sequence
from .code import GONE

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_MOST = 64  # items of a container that are compared
_ITERATE = ("children", "named_children", "modules", "named_modules", "_modules")


def child(module, path):
    """What is at `path` of `module`, or None. The path "" is the module itself."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module


def read_by(module, code):
    """(attributes, holders) of `module`: ((path of the owner, name, `frozen` value), ...) of every plain attribute that
    `code` may read, and ((path, names of the children), ...) of what it may go through."""
    attributes, holders = [], []
    if is_sequence(module) or any(map(code.names, _ITERATE)):
        holders.append(("", tuple(module._modules)))
    _collect(module, "", code, attributes, holders, set())
    return tuple(attributes), tuple(holders)


def _collect(owner, path, code, attributes, holders, seen):
    if id(owner) in seen:
        return
    seen.add(id(owner))
    is_module = isinstance(owner, nn.Module)
    state = dict(owner.__dict__)
    if is_module:
        state |= owner._parameters | owner._buffers
    for name, value in state.items():
        if (is_module and name in _OF_EVERY_MODULE) or not code.names(name) or isinstance(value, nn.Module):
            continue
        attributes.append((path, name, frozen(value)))
        if isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, (torch.Tensor, type)):
            _collect(value, f"{path}.{name}".strip("."), code, attributes, holders, seen)
    if not is_module:
        return
    through = _holds(owner) or (not path and any(map(code.names, _ITERATE)))
    for name, part in owner._modules.items():
        if part is None or not (through or code.names(name)):
            continue
        below = f"{path}.{name}".strip(".")
        if _holds(part):
            holders.append((below, tuple(part._modules)))
        _collect(part, below, code, attributes, holders, seen)


def _holds(module):
    """Whether a forward can only go through `module`: nn.ModuleList, nn.ModuleDict and their like, and sequences."""
    return type(module).forward is nn.Module.forward or is_sequence(module)


def stored(owner, name):
    """The attribute `name` as it is stored in `owner`: no property and no parametrization runs."""
    state = owner.__dict__
    if name in state:
        return state[name]
    for store in ("_parameters", "_buffers"):
        if name in state.get(store, ()):
            return state[store][name]
    return GONE


def frozen(value):
    """`value` as far as it is made of plain values, in a form that can be compared, printed and pickled; else its kind."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if len(value) > _MOST:
            return type(value).__name__, len(value)
        if isinstance(value, (set, frozenset)):
            return (type(value).__name__, *sorted(map(repr, value)))
        return (type(value).__name__, *map(frozen, value.items() if isinstance(value, dict) else value))
    if isinstance(value, torch.Tensor):
        return ("a tensor",)
    if hasattr(value, "__qualname__"):  # functions and classes
        line = getattr(getattr(value, "__code__", None), "co_firstlineno", "")
        return (f"{value.__module__}.{value.__qualname__}", line)
    return (type(value).__qualname__,)


def is_compared(value):
    """Whether every call compares `value` as it is, or whether it changes no program, as tensors do."""
    return type(value) in _PLAIN or isinstance(value, torch.Tensor)


def why_not_current(module, program):
    """What `program` depends on and `module` has no longer, or None."""
    for path, name, value in program.attributes:
        owner = child(module, path)
        now = GONE if owner is None else stored(owner, name)
        if now is not value and (type(now := frozen(now)) is not type(value) or now != value):
            return (
                f"{path}.{name}".strip(".")
                + f" is {_shown(now)}, and was {_shown(value)} when the module was converted"
            )
    for path, names in program.holders:
        if tuple(child(module, path)._modules) != names:
            return f"{path or 'the module'} has other children than when it was converted"
    return None


def _shown(value):
    """In a line of `explain`."""
    return " ".join(map(str, value)).strip() if isinstance(value, tuple) else repr(value)
