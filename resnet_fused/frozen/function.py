"""Functions of torch as modules: what a network calls between its modules, with the values that it reads left open."""

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Value:
    """Value number `index` in a template: a nest of tuples, lists, dicts and slices with Values and constants in it."""

    index: int


@dataclass(frozen=True)
class Made:
    """A container of another kind in a template: `kind(**fields)`, such as a named tuple."""

    kind: type
    fields: dict


def fill(template, values):
    """`template` with `values[index]` for every Value."""
    if type(template) is Value:
        return values[template.index]
    if type(template) in (dict, OrderedDict):
        return type(template)((key, fill(item, values)) for key, item in template.items())
    if type(template) in (tuple, list):
        return type(template)(fill(item, values) for item in template)
    if type(template) is Made:
        return template.kind(**fill(template.fields, values))
    if type(template) is slice:
        return slice(*(fill(item, values) for item in (template.start, template.stop, template.step)))
    return template


def template_of(nest, value_of):
    """The template of a nest of containers: `value_of(item)` is the Value of an item, or None where the item is a constant
    or a container."""

    def made(item):
        if (value := value_of(item)) is not None:
            return value
        if type(item) is Made:
            return Made(item.kind, made(item.fields))
        if hasattr(item, "_fields") or (isinstance(item, OrderedDict) and is_dataclass(item)):  # such as ModelOutput
            pairs = item._asdict() if hasattr(item, "_fields") else item
            return Made(type(item), {key: made(part) for key, part in pairs.items()})
        if isinstance(item, dict):
            kind = OrderedDict if isinstance(item, OrderedDict) else dict
            return kind((key, made(part)) for key, part in item.items())
        if isinstance(item, (tuple, list)):
            return (tuple if isinstance(item, tuple) else list)(made(part) for part in item)
        if isinstance(item, slice):
            return slice(*(made(part) for part in (item.start, item.stop, item.step)))
        return item

    return made(nest)


def items_of(nest, kind):
    """The items of type `kind` in a nest of containers, in order."""
    found = []

    def note(item):
        if type(item) is kind:
            found.append(item)
            return item
        return None

    template_of(nest, note)
    return found


def tensors_in(nest):
    """The tensors in a nest of containers, in order. torch's pytree would have to be told of some of the containers."""
    found = []

    def note(item):
        if not torch.is_tensor(item):
            return None
        found.append(item)
        return item

    template_of(nest, note)
    return found


def mapped(change, *nests):
    """The first of `nests` with `change(*tensors)` for the tensors that stand at one place of all of them."""
    changed = [change(*tensors) for tensors in zip(*map(tensors_in, nests), strict=True)]
    places = itertools.count()
    template = template_of(nests[0], lambda item: Value(next(places)) if torch.is_tensor(item) else None)
    return fill(template, changed)


def values_of(template):
    """The numbers of the values in `template`, in order, each once."""
    return tuple(dict.fromkeys(value.index for value in items_of(template, Value)))


class Unary(NamedTuple):
    """An elementwise function that oneDNN can apply to the result of a convolution, with its arguments there."""

    function: Callable
    name: str
    scalars: tuple = ()
    algorithm: str = ""


UNARY = {
    "hardswish": Unary(F.hardswish, "hardswish"),
    "silu": Unary(F.silu, "swish"),
    "relu6": Unary(F.relu6, "hardtanh", (0.0, 6.0)),
    "sigmoid": Unary(torch.sigmoid, "sigmoid"),
    "hardsigmoid": Unary(F.hardsigmoid, "hardsigmoid"),
}


ROOMS = {"torch": torch, "F": F, "operator": operator}
# What a file may name. No entry reads a file, runs code from text, or writes into its arguments.
FUNCTIONS = {
    "torch": "add mul sub div cat stack flatten mean sum relu sigmoid tanh softmax amax reshape permute transpose squeeze "
    "unsqueeze conv2d batch_norm clamp split chunk unbind matmul",
    "F": "relu relu6 silu gelu hardswish hardsigmoid hardtanh sigmoid leaky_relu softmax max_pool2d avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d interpolate pad conv2d batch_norm layer_norm linear normalize",
    "operator": "add sub mul truediv floordiv neg getitem mod pow",
    "": "add mul sub div flatten view reshape size mean sum relu sigmoid tanh contiguous squeeze unsqueeze permute transpose "
    "chunk split unbind expand expand_as softmax amax dim clamp",
}
NAMES = {f"{room}.{name}" for room, names in FUNCTIONS.items() for name in names.split()} | {"getattr"}


def name_of(target):
    """ "F.relu" for torch.nn.functional.relu, "torch.cat", "operator.add"; None: `target` is none of them."""
    if target is getattr:
        return "getattr"
    for room, module in ROOMS.items():
        name = getattr(target, "__name__", "")
        if getattr(module, name, None) is target:
            return f"{room}.{name}"
    return None


def function_of(name):
    """The function that `name_of` named."""
    if name == "getattr":
        return getattr
    room, _, function = name.rpartition(".")
    return getattr(ROOMS[room], function)


class Function(nn.Module):
    """`forward(*values)` -> `target(*args, **kwargs)`, with the values in the templates `args` and `kwargs`.

    target: a function, or the name of a method of its first argument.
    """

    def __init__(self, target, args, kwargs):
        super().__init__()
        self.target, self.args, self.kwargs = target, tuple(args), dict(kwargs)
        self.plain = not kwargs and self.args == tuple(map(Value, range(len(self.args))))

    def forward(self, *values):
        args, kwargs = (values, {}) if self.plain else (fill(self.args, values), fill(self.kwargs, values))
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    @property
    def name(self):
        """The name in a file, or None."""
        name = f".{self.target}" if isinstance(self.target, str) else name_of(self.target)
        return name if name in NAMES else None

    def extra_repr(self):
        return self.target if isinstance(self.target, str) else getattr(self.target, "__name__", repr(self.target))


class Constant(nn.Module):
    """`forward()` -> a parameter or buffer of the network."""

    def __init__(self, value):
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.register_parameter("value", value)
        else:
            self.register_buffer("value", value)

    def forward(self):
        return self.value
