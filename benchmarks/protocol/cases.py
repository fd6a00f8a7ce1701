"""The cases of the kernel benchmarks: every distinct call that a model makes (resnet_fused/commands/tune/calls.py)."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import math

import torch
import torch.nn.functional as F

from resnet_fused import ops
from resnet_fused.commands.tune import calls
from resnet_fused.kernels.epilogue import NONE, RELU

OPS = ("conv_bn_relu", "conv_bn_relu_pool", "conv_bn_relu_pair", "pool_linear", "bn_relu", "add_relu")
DIRECTIONS = ("forward", "backward")
VALUES_ONLY = ("conv_bn_relu_pool", "conv_bn_relu_pair", "pool_linear")
# What is differentiated, of the arguments a case has.
WANTED = {"conv_bn_relu": ("x", "weight", "residual"), "bn_relu": ("x", "weight", "bias", "residual"),
          "add_relu": ("x", "residual")}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """`conv_bn_relu` in evaluation (its backward: frozen batch norm), the stem with its max-pool, the first convolution of a
    block with its projection, the head (global average pool and linear layer), `bn_relu` in training, `add_relu`."""

    op: str
    direction: str
    call: calls.Call
    count: int  # how often the model makes this call

    @property
    def shape(self):
        return self.call["x"].shape

    @property
    def label(self):
        """Such as `256x64x56x56 -> 64 3x3/1 +add`: enough to tell the cases of one op apart."""
        text = "x".join(map(str, self.shape))
        if self.op.startswith("conv"):
            k, _, r, s = self.call["weight"].shape
            text += f" -> {k} {r}x{s}/{self.call['stride'][0]}"
        if self.op == "conv_bn_relu_pair":
            text += f" and {self.call['weight2'].shape[0]} 1x1/{self.call['stride2'][0]}"
        if self.op == "pool_linear":
            text += f" -> {self.call['weight'].shape[0]}"
        if self.op in ("conv_bn_relu", "bn_relu"):
            text += " +add" * (self.call["residual"] is not None) + " -relu" * (self.call["activation"] == NONE)
        return text

    def arguments(self, device, seed):
        """{name: tensor or value} of one call."""
        names = [name for name, _ in self.call.arguments]
        a = dict(zip(names, calls.tensors(self.call, device, seed), strict=True))
        if self.op == "bn_relu":  # 16-bit types train under autocast, which leaves batch norm's parameters in float32
            a |= {name: a[name].float() for name in ("weight", "bias")}
        return a

    @property
    def reference(self):
        if self.op == "conv_bn_relu_pair":
            return _pair_reference
        if self.op == "pool_linear":
            return _head_reference
        return importlib.import_module(f"resnet_fused.ops.{self.op}").reference

    @property
    def public(self):
        return getattr(ops, self.op)

    def run(self, function, a):
        """`function`, with the signature of the public op and its reference, on the arguments `a`."""
        if self.op == "add_relu":
            return function(a["x"], a["residual"])
        if self.op == "pool_linear":
            return function(a["x"], a["weight"], a["bias"])
        if self.op == "conv_bn_relu_pair":
            names = ("bn_weight", "bn_bias", "mean", "var")
            norms = ([a[f"{name}{suffix}"] for name in names] for suffix in ("", "2"))
            return function(
                a["x"], a["weight"], next(norms), a["weight2"], next(norms), stride=a["stride"], padding=a["padding"],
                dilation=a["dilation"], eps=a["eps"], stride2=a["stride2"], eps2=a["eps2"],
            )  # fmt: skip
        if self.op == "bn_relu":
            return function(
                a["x"], a["weight"], a["bias"], a["mean"], a["var_or_invstd"], a["residual"],
                training=True, eps=1e-5, relu=a["activation"] == RELU,
            )  # fmt: skip
        if self.op == "conv_bn_relu_pool":
            return function(
                a["x"], a["weight"], a["bn_weight"], a["bn_bias"], a["mean"], a["var"],
                stride=a["stride"], padding=a["padding"], eps=a["eps"],
            )  # fmt: skip
        return function(
            a["x"], a["weight"], a["bn_weight"], a["bn_bias"], a["mean"], a["var"], a["residual"],
            stride=a["stride"], padding=a["padding"], dilation=a["dilation"], groups=a["groups"], eps=a["eps"],
            relu=a["activation"] == RELU,
        )  # fmt: skip

    def differentiable(self, a):
        """(`a` with leaves that want gradients, those leaves)."""
        leaves = {name: a[name].detach().requires_grad_() for name in WANTED[self.op] if a.get(name) is not None}
        return a | leaves, list(leaves.values())

    @property
    def out_shape(self):
        if self.op == "pool_linear":
            return self.shape[0], self.call["weight"].shape[0]
        return calls.out_shape(self.call)

    @property
    def flops(self):
        if self.op == "pool_linear":
            return 2 * self.shape[0] * math.prod(self.call["weight"].shape)
        if not self.op.startswith("conv"):
            return 0
        forward = 0
        for conv in calls.convolutions(self.call):
            out = calls.out_shape(conv)
            forward += 2 * out[0] * out[2] * out[3] * math.prod(conv["weight"].shape)
        return forward if self.direction == "forward" else 2 * forward  # gradients of x and of weight

    def nbytes(self, a):
        """Bytes if every tensor were moved once. Backward: the gradient in, what was saved, the gradients out."""
        tensors = [t for t in a.values() if isinstance(t, torch.Tensor)]
        out = math.prod(self.out_shape) * a["x"].element_size()
        if self.op == "conv_bn_relu_pair":
            out += math.prod(calls.out_shape(calls.convolutions(self.call)[1])) * a["x"].element_size()
        given = sum(t.nbytes for t in tensors)
        if self.direction == "forward":
            return given + out
        saved = given - (a["residual"].nbytes if a.get("residual") is not None else 0)  # the output is its mask
        if self.op == "add_relu":
            saved -= a["x"].nbytes
        elif self.op == "conv_bn_relu":
            saved += out  # the gradient of the convolution's output is written and read again
        return saved + 2 * out + sum(a[name].nbytes for name in WANTED[self.op] if a.get(name) is not None)


def _with_pool(call):
    """The stem's `conv_bn_relu` with the pool that follows it."""
    rest = [(name, call[name]) for name in ("stride", "padding", "eps")]
    return calls.Call("conv_bn_relu_pool", (*((name, call[name]) for name in calls.CONVOLUTION), *rest))


def _pair_reference(x, weight, norm, weight2, norm2, *, stride, padding, dilation, eps, stride2, eps2):
    conv = importlib.import_module("resnet_fused.ops.conv_bn_relu").reference
    first = conv(x, weight, *norm, stride=stride, padding=padding, dilation=dilation, eps=eps, momentum=0.0)
    return first, conv(x, weight2, *norm2, stride=stride2, eps=eps2, relu=False, momentum=0.0)


def _head_reference(x, weight, bias):
    return F.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), weight, bias)


def _pairs(model, evaluation):
    """{Call of conv_bn_relu_pair: how often}: every first convolution of a block with a projection, from the calls that the
    model makes one by one."""

    def call_of(conv, activation):
        shape, stride = tuple(conv.weight.shape), tuple(conv.stride)
        return next(
            c for c in evaluation
            if (c["weight"].shape, c["stride"], c["activation"], c["residual"]) == (shape, stride, activation, None)
        )  # fmt: skip

    found = collections.Counter()
    for block in model.modules():
        down = getattr(block, "downsample", None)
        if not (isinstance(down, torch.nn.Sequential) and hasattr(block, "conv1")):
            continue
        first, second = call_of(block.conv1, RELU), call_of(down[0], NONE)
        where = [(name, first[name]) for name in ("stride", "padding", "dilation", "eps")]
        with2 = [(f"{name}2", second[name]) for name in (*calls.CONVOLUTION[1:], "stride", "eps")]
        one = [(name, first[name]) for name in calls.CONVOLUTION]
        found[calls.Call("conv_bn_relu_pair", (*one, *where, *with2))] += 1
    return found


def _head(model, evaluation):
    last = list(evaluation)[-1]
    n, _, h, w = calls.out_shape(last)
    x = last["x"]._replace(shape=(n, model.fc.in_features, h, w))
    vector = calls.Spec((model.fc.out_features,), x.dtype, torch.contiguous_format)
    weight = calls.Spec(tuple(model.fc.weight.shape), x.dtype, torch.contiguous_format)
    return {calls.Call("pool_linear", (("x", x), ("weight", weight), ("bias", vector))): 1}


def collect(model, batch, size, dtype, chosen=OPS, directions=DIRECTIONS):
    """The cases of `model` (channels_last) at that batch, in the order of the network."""
    shape = (batch, 3, size, size)
    evaluation = collections.Counter()
    for call, count in calls.calls(model, shape, dtype).items():
        evaluation.update(dict.fromkeys(calls.convolutions(call), count))
    found = {op: {} for op in OPS} | {"conv_bn_relu": evaluation}
    found |= {"conv_bn_relu_pair": _pairs(model, evaluation), "pool_linear": _head(model, evaluation)}
    if "bn_relu" in chosen:
        training = calls.calls(model, shape, dtype, train=True)
        found["bn_relu"] = {c: n for c, n in training.items() if c.op == "bn_relu"}
    for call, count in evaluation.items():
        if (spec := call["residual"]) is not None:
            found["add_relu"][calls.Call("add_relu", (("x", spec), ("residual", spec)))] = count
        elif call["weight"].shape[1] == 3:
            found["conv_bn_relu_pool"][_with_pool(call)] = count
    return [
        Case(op, direction, call, count)
        for op in chosen
        for call, count in found[op].items()
        for direction in directions
        if direction == "forward" or op not in VALUES_ONLY
    ]
