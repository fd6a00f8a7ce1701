"""A program: what a module's forward computes as a list of steps, with the chains fused.

A program is made of names and numbers only, so it can be compared, printed and pickled.
"""

import operator
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Ref(NamedTuple):
    """Value number `index`: 0 is the module's input, i the result of step i - 1."""

    index: int


class Chain(NamedTuple):
    """relu(norm(conv(x)) + residual); conv and residual may be None. in_place: the sum was written `out += residual`."""

    conv: str | None
    norm: str
    x: Ref
    residual: Ref | None
    relu: bool
    in_place: bool


class AddRelu(NamedTuple):
    """relu(x + residual)."""

    x: Ref
    residual: Ref
    in_place: bool


class Call(NamedTuple):
    """A child that is called as it is."""

    path: str
    args: tuple
    kwargs: tuple


class Attribute(NamedTuple):
    """A parameter or buffer of the module itself, read at every call."""

    path: str


class Function(NamedTuple):
    """One of FUNCTIONS, or a method of its first argument (named ".flatten")."""

    name: str
    args: tuple
    kwargs: tuple


class Program(NamedTuple):
    """What a forward computes, and what must hold when the program runs in its place.

    steps: Chains, AddRelus, Calls, Attributes and Functions, in order. output: the template of the result. parts: (path, kind)
    of every child that forward calls and the program does not. absent: children that were None, which forward may have asked
    for. unfused: (path, reason) of convolutions and batch norms that are called as they are. attributes: (path of the owner,
    name, value) of plain attributes that forward may read. holders: (path, names of the children) of what it may go through.
    """

    steps: tuple
    output: object
    parts: tuple
    absent: tuple
    unfused: tuple
    attributes: tuple = ()
    holders: tuple = ()


FUNCTIONS = {
    "torch.flatten": torch.flatten,
    "torch.relu": torch.relu,
    "torch.cat": torch.cat,
    "torch.add": torch.add,
    "torch.mean": torch.mean,
    "F.relu": F.relu,
    "F.dropout": F.dropout,
    "F.pad": F.pad,
    "F.avg_pool2d": F.avg_pool2d,
    "F.adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "F.max_pool2d": F.max_pool2d,
    "operator.add": operator.add,
    "operator.iadd": operator.iadd,
    "operator.mul": operator.mul,
    "operator.imul": operator.imul,
    "operator.getitem": operator.getitem,
    "operator.floordiv": operator.floordiv,
    "getattr": getattr,
}
NAMES = {function: name for name, function in FUNCTIONS.items()}
METHODS = {"flatten", "view", "reshape", "size", "mean", "relu", "relu_", "add", "add_", "mul", "contiguous", "squeeze"}
SEQUENCES = {"tuple": tuple, "list": list}
DICTS = {"dict": dict, "ordered": OrderedDict}


def fill(template, values):
    """A template of Refs and constants with the values in."""
    if type(template) is Ref:
        return values[template.index]
    if type(template) is tuple:
        kind, items = template
        if kind in DICTS:
            return DICTS[kind]((k, fill(v, values)) for k, v in items)
        if kind == "slice":
            return slice(*(fill(v, values) for v in items))
        return SEQUENCES[kind](fill(v, values) for v in items)
    return template
