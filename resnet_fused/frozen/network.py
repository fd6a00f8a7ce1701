"""A network as a list of steps: convolutions with what follows them, other modules and functions, and the head.

The steps stand in the order in which they run. Each step names the values that it reads and the value that it writes by
number. Value 0 is the image. All code of this package that walks through a network uses this list. No step writes into
a value: `read` replaces what the model does in place.
"""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels import layout
from ..kernels.shapes import Convolution, pooled_shape
from .function import UNARY, fill, values_of


@dataclass(eq=False)
class ConvBn:
    """[max_pool2d] [unary | relu] ([bn] (conv(value `input`)) [+ value `residual`]) -> value `output`. `shape`: of its
    input. `bn`: None, or a batch norm that is folded. `unary`: a name of function.UNARY.

    An engine notes here what runs the step: `choice` out of the candidates in `ranking` (the fastest first), and the
    `reason`. `run` is the choice with its weights loaded.
    """

    name: str
    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None
    input: int = 0
    residual: int | None = None
    output: int = 1
    relu: bool = True
    pool: bool = False
    unary: str | None = None
    shape: tuple = ()
    choice: object = None
    ranking: list = field(default_factory=list)
    reason: str = ""
    run: object = None

    @property
    def reads(self):
        return (self.input,) if self.residual is None else (self.input, self.residual)

    @property
    def adds(self):
        return self.residual is not None

    @property
    def key(self):
        """Steps with the same key are measured together."""
        conv = self.conv
        return (
            self.shape, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            self.relu, self.adds, self.pool, *filter(None, [self.unary]),
        )  # fmt: skip

    @property
    def op(self):
        norm = "conv" if self.bn is None else "conv_bn"
        unary = "" if self.unary is None else f"_{self.unary}"
        return norm + "_add" * self.adds + "_relu" * self.relu + unary + "_pool" * self.pool

    def convolution(self, dtype=None, shape=None):
        """The Convolution for an input of `shape`."""
        conv = self.conv
        geometry = map(tuple, (conv.stride, conv.padding, conv.dilation))
        return Convolution(tuple(shape or self.shape), tuple(conv.weight.shape), dtype, *geometry, conv.groups)

    def conv_shape(self, shape=None):
        """[N, K, P, Q] of the convolution before its pool, for an input of `shape`."""
        return self.convolution(shape=shape).out_shape

    def out_shape(self, shape=None):
        """[N, K, P, Q] of the value that the step writes."""
        return pooled_shape(self.conv_shape(shape)) if self.pool else self.conv_shape(shape)

    def follow(self, y, residual=None):
        """What comes after the norm, in torch's operators."""
        y = y if residual is None else y + residual
        y = F.relu(y) if self.relu else y
        y = y if self.unary is None else UNARY[self.unary].function(y)
        return F.max_pool2d(y, 3, 2, 1) if self.pool else y


class Apply(NamedTuple):
    """`module(*values)` -> value `output`: whatever has no kernel here, a `function.Function` among others."""

    name: str
    module: nn.Module
    inputs: tuple
    output: int
    residual: None = None

    @property
    def reads(self):
        return self.inputs

    @property
    def input(self):
        return self.inputs[0]


class Head(NamedTuple):
    """fc(flatten(avgpool(value `input`))) -> value `output`, the logits. `avgpool`: the mean of all pixels."""

    avgpool: nn.Module
    fc: nn.Module
    input: int
    output: int
    residual: None = None
    name: str = "head"

    @property
    def reads(self):
        return (self.input,)


def dead_values(steps, kept=()):
    """For every step the values that no later step reads, without those in `kept`."""
    last = {value: i for i, step in enumerate(steps) for value in step.reads}
    return [tuple(v for v in dict.fromkeys(s.reads) if last[v] == i and v not in kept) for i, s in enumerate(steps)]


def normed(step, x):
    """The result of the norm of a ConvBn, by its own modules."""
    return step.conv(x) if step.bn is None else step.bn(step.conv(x))


def call_of(step):
    """An Apply or a Head as a function of the values that it reads, by the network's own modules."""
    return _child(step)


class InDtype:
    """An Apply or a Head as a function of the values that it reads, a snapshot in `dtype`. Maps come out channels_last."""

    def __init__(self, step, dtype):
        self.module = copy.deepcopy(_child(step)).eval().to(dtype).requires_grad_(False)

    def __call__(self, *values):
        y = self.module(*values)
        return layout.in_format(y, layout.CHANNELS_LAST) if torch.is_tensor(y) and y.dim() == 4 else y


@torch.no_grad()
def observe(model, steps, x, see):
    """Runs the modules of `steps` on `x` in evaluation mode, in the dtype of `model`. `see(step, x, y)` gets the input of
    every convolution and head, and what its norm, or the head, gives."""
    training = [m for m in model.modules() if m.training]

    def call(step, *values):
        y = normed(step, values[0]) if isinstance(step, ConvBn) else call_of(step)(*values)
        if not isinstance(step, Apply):
            see(step, values[0], y)
        return step.follow(y, *values[1:]) if isinstance(step, ConvBn) else y

    try:
        model.eval()
        walk(steps, x.to(next(model.parameters()).dtype), call)
    finally:
        for m in training:
            m.training = True


def walk(steps, x, call, kept=()):
    """{number: value} of the values in `kept` for the image `x`. `call(step, *values)` gives the value of a step."""
    values = {0: x}
    for step, dead in zip(steps, dead_values(steps, kept), strict=True):
        values[step.output] = call(step, *(values[value] for value in step.reads))
        for value in dead:
            del values[value]
    return {value: values[value] for value in kept}


class Network(nn.Module):
    """A list of steps as a module of torch's own operators. x: [N, C, H, W] -> the result of the network.

    Every step is a child under its name, with _ for the dots. `child(step)`: that child; None: the step's own modules.
    """

    def __init__(self, steps, result, child=None):
        super().__init__()
        self.result = result
        self.calls = []  # (the step without its modules, the name of the child, the values that no later step reads)
        for step, dead in zip(steps, dead_values(steps, values_of(result)), strict=True):
            name = step.name.replace(".", "_").replace("#", "_")
            self.add_module(name, (child or _child)(step))
            self.calls.append((_bare(step), name, dead))

    def forward(self, x):
        values = {0: x}
        for step, name, dead in self.calls:
            x, *others = (values[value] for value in step.reads) if step.reads else (None,)
            if isinstance(step, ConvBn):
                y = step.follow(getattr(self, name)(x), *others)
            else:
                y = getattr(self, name)(*((x, *others) if step.reads else ()))
            values[step.output] = y
            for value in dead:
                del values[value]
        return fill(self.result, values)

    def steps(self):
        """The list of steps, with the children of this module."""
        return [_with_modules(step, getattr(self, name)) for step, name, _ in self.calls]


def _child(step):
    if isinstance(step, ConvBn):
        return nn.Sequential(step.conv, *([] if step.bn is None else [step.bn]))
    return nn.Sequential(step.avgpool, nn.Flatten(), step.fc) if isinstance(step, Head) else step.module


def _bare(step):
    if isinstance(step, ConvBn):
        return ConvBn(step.name, None, None, step.input, step.residual, step.output, step.relu, step.pool, step.unary)
    return step._replace(avgpool=None, fc=None) if isinstance(step, Head) else step._replace(module=None)


def _with_modules(step, child):
    if isinstance(step, ConvBn):
        parts = child[0], child[1] if len(child) > 1 else None
        return ConvBn(
            step.name, *parts, step.input, step.residual, step.output, step.relu, step.pool, step.unary
        )  # fmt: skip
    if isinstance(step, Head):
        return step._replace(avgpool=child[0], fc=child[2])
    return step._replace(module=child)
