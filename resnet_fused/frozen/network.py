"""A network as a list of steps: convolutions with their batch norm, residual, ReLU and pool, other modules, and the
head.

The steps stand in the order in which they run. Each step names the values that it reads and the value that it writes by
number. Value 0 is the image. All code of this package that walks through a network uses this list.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.shapes import Convolution, pooled_shape
from ..modules.eligible import why_not_convolution, why_not_pool
from ..modules.norms import why_not_norm
from ..modules.torchs_own import why_not_torchs_own


@dataclass(eq=False)
class ConvBn:
    """[max_pool2d] [relu] (bn(conv(value `input`)) [+ value `residual`]) -> value `output`. `shape`: of its input.

    An engine notes here what runs the step: `choice` out of the candidates in `ranking` (the fastest first), and the
    `reason`. `run` is the choice with its weights loaded.
    """

    name: str
    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    input: int = 0
    residual: int | None = None
    output: int = 1
    relu: bool = True
    pool: bool = False
    shape: tuple = ()
    choice: object = None
    ranking: list = field(default_factory=list)
    reason: str = ""
    run: object = None

    @property
    def adds(self):
        return self.residual is not None

    @property
    def key(self):
        """Steps with the same key are measured together."""
        conv = self.conv
        return (
            self.shape, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
            self.relu, self.adds, self.pool,
        )  # fmt: skip

    @property
    def op(self):
        return "conv_bn" + "_add" * self.adds + "_relu" * self.relu + "_pool" * self.pool

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


class Apply(NamedTuple):
    """`module(value input)` -> value `output`: a pool of another kind, a shortcut without a convolution."""

    name: str
    module: nn.Module
    input: int
    output: int
    residual: None = None


class Head(NamedTuple):
    """fc(flatten(avgpool(value `input`))) -> value `output`, the logits: the last step."""

    avgpool: nn.Module
    fc: nn.Module
    input: int
    output: int
    residual: None = None
    name: str = "head"


def dead_values(steps):
    """For every step the values that no later step reads."""
    last = {value: i for i, step in enumerate(steps) for value in (step.input, step.residual) if value is not None}
    return [tuple(value for value in last if last[value] == i) for i in range(len(steps))]


def read(model):
    """The steps of `model`, a ResNet with torchvision's names or a `Network`. Raises TypeError with the name of a part
    that cannot be frozen, or of a function of torch that was replaced."""
    if (why := why_not_torchs_own()) is not None:
        raise TypeError(f"freeze: {why}; use the live model")
    if isinstance(model, Network):
        return model.steps()
    _check_model(model)
    steps, values = [], itertools.count(1)

    def convolution(name, conv, bn, x, **follows):
        steps.append(ConvBn(name, conv, bn, x, output=next(values), **follows))
        _check_convolution(steps[-1])
        return steps[-1].output

    def through(name, module, x):
        if module is None or type(module) is nn.Identity:
            return x
        steps.append(Apply(name, module, x, next(values)))
        return steps[-1].output

    pool = getattr(model, "maxpool", None)  # networks for small images have none
    fused = why_not_pool(pool) is None
    x = convolution("conv1", model.conv1, model.bn1, 0, pool=fused)
    x = x if fused else through("maxpool", pool, x)
    for name, block in _blocks(model):
        shortcut = f"{name}.downsample"
        if isinstance(block.downsample, nn.Sequential):
            if len(block.downsample) != 2:
                raise TypeError(f"freeze: {shortcut} is not a convolution and a batch norm; use the live model")
            residual = convolution(shortcut, *block.downsample, x, relu=False)
        else:
            residual = through(shortcut, block.downsample, x)
        *firsts, last = [i for i in (1, 2, 3) if getattr(block, f"conv{i}", None) is not None]
        for i in firsts:
            x = convolution(f"{name}.conv{i}", getattr(block, f"conv{i}"), getattr(block, f"bn{i}", None), x)
        conv, bn = getattr(block, f"conv{last}"), getattr(block, f"bn{last}", None)
        x = convolution(f"{name}.conv{last}", conv, bn, x, residual=residual)
    return [*steps, Head(model.avgpool, model.fc, x, next(values))]


def _blocks(model):
    """(name, block) of layer1, layer2, ..., as many as the model has."""
    for i in itertools.count(1):
        if not hasattr(model, f"layer{i}"):
            return
        for j, block in enumerate(getattr(model, f"layer{i}")):
            yield f"layer{i}.{j}", block


def _check_model(model):
    missing = [part for part in ("conv1", "bn1", "layer1", "avgpool", "fc") if not hasattr(model, part)]
    if missing:
        raise TypeError(f"freeze: {type(model).__name__} is not a ResNet: it has no {missing[0]}")
    for name, block in _blocks(model):
        if not all(hasattr(block, part) for part in ("conv1", "bn1", "conv2", "bn2", "downsample")):
            raise TypeError(f"freeze: {name} is a {type(block).__name__}, not a BasicBlock or Bottleneck")


def _check_convolution(step):
    why = why_not_convolution(step.conv) or why_not_norm(step.bn)
    if why is None and step.bn.running_var is None:
        why = "has no running statistics to fold"
    if why is not None:
        raise TypeError(f"freeze: {step.name} {why}; use the live model")


@torch.no_grad()
def observe(model, x, before, after=()):
    """Runs `model` once in evaluation mode on `x` in the model's own dtype. `before`, `after`: pairs (module,
    function). The functions get the input or the output of their module."""
    handles = [m.register_forward_pre_hook(lambda m, args, see=see: see(args[0])) for m, see in before]
    handles += [m.register_forward_hook(lambda m, args, out, see=see: see(out)) for m, see in after]
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()
        model(x.to(next(model.parameters()).dtype))
    finally:
        for m in training:
            m.training = True
        for handle in handles:
            handle.remove()


class Network(nn.Module):
    """A list of steps as a module of torch's own operators. x: [N, C, H, W] -> logits.

    Every step is a child under its name, with _ for the dots. `convolution(step)`: the child that stands for a
    convolution and its batch norm.
    """

    def __init__(self, steps, convolution=lambda step: nn.Sequential(step.conv, step.bn)):
        super().__init__()
        self.calls = []  # (the step without its modules, the values that no later step reads)
        for step, dead in zip(steps, dead_values(steps), strict=True):
            if isinstance(step, ConvBn):
                child = convolution(step)
                bare = ConvBn(step.name, None, None, step.input, step.residual, step.output, step.relu, step.pool)
            elif isinstance(step, Head):
                child, bare = nn.Sequential(step.avgpool, nn.Flatten(), step.fc), step._replace(avgpool=None, fc=None)
            else:
                child, bare = step.module, step._replace(module=None)
            self.add_module(_child_name(step), child)
            self.calls.append((bare, dead))

    def forward(self, x):
        values = {0: x}
        for step, dead in self.calls:
            y = getattr(self, _child_name(step))(values[step.input])
            if step.residual is not None:
                y = y + values[step.residual]
            if isinstance(step, ConvBn):
                y = F.relu(y) if step.relu else y
                y = F.max_pool2d(y, 3, 2, 1) if step.pool else y
            values[step.output] = y
            for value in dead:
                del values[value]
        return y

    def steps(self):
        """The list of steps, with the children of this module."""
        return [_with_modules(step, getattr(self, _child_name(step))) for step, _ in self.calls]


def _child_name(step):
    return step.name.replace(".", "_")


def _with_modules(step, child):
    if isinstance(step, ConvBn):
        conv, bn = child
        return ConvBn(step.name, conv, bn, step.input, step.residual, step.output, step.relu, step.pool)
    if isinstance(step, Head):
        return step._replace(avgpool=child[0], fc=child[2])
    return step._replace(module=child)
