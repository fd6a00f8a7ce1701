"""Passes over a map that no convolution takes in, by the library: a norm with its ReLU, a gate with a sum and a ReLU.

torch needs a pass for each: for DenseNet's norms before a convolution two, for the end of a block with squeeze and
excitation three.
"""

import torch
from torch import nn

from ...kernels import layout, library
from ...kernels.epilogue import NONE, RELU
from ..gate import Gate
from ..network import Apply


class NormRelu:
    """`run(x)` -> relu(bn(x))."""

    def __init__(self, bn):
        self.bn_relu, self.eps = library.namespace().bn_relu, bn.eps
        names = ("running_mean", "running_var", "weight", "bias")
        self.tensors = [None if (t := getattr(bn, n)) is None else t.detach().float().clone() for n in names]

    def __call__(self, x):
        out = torch.empty_like(x)
        self.bn_relu(x, *self.tensors, None, out, self.eps, RELU)
        return out


class GateOf:
    """`run(x, gate, residual)` -> [relu](x * gate [+ residual]): for each image a norm with the gate as its weight."""

    def __init__(self, gate):
        self.bn_relu, self.activation, self.tensors = library.namespace().bn_relu, RELU if gate.relu else NONE, []
        self.by_torch = gate

    def __call__(self, x, gate, residual=None):
        if any(t is not None and t.dtype != x.dtype for t in (gate, residual)):
            return self.by_torch(x, gate, residual)  # promotes
        gate, one = gate.reshape(gate.shape[:2]).float(), x.new_ones(x.shape[1], dtype=torch.float32)
        zero, out = torch.zeros_like(one), torch.empty_like(x)
        for i in range(x.shape[0]):
            added = None if residual is None else residual[i : i + 1]
            self.bn_relu(x[i : i + 1], zero, one, gate[i], None, added, out[i : i + 1], None, self.activation)
        return out


def is_pass(step):
    """Whether the library runs `step` in one pass."""
    if not isinstance(step, Apply) or library.why_absent() is not None:
        return False
    module = step.module
    kinds = [type(m) for m in module] if type(module) is nn.Sequential else type(module)
    return kinds in (Gate, [nn.BatchNorm2d, nn.ReLU])


def pass_of(step):
    """What runs a step for which `is_pass` holds."""
    module = step.module
    return _ChannelsLast(GateOf(module) if type(module) is Gate else NormRelu(module[0]))


class _ChannelsLast:
    """`run` on maps that are brought to channels_last."""

    def __init__(self, run):
        self.run, self.tensors = run, run.tensors

    def __call__(self, *values):
        return self.run(*(layout.in_format(value, layout.CHANNELS_LAST) for value in values))
