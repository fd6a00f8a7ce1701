"""The cases of the kernel benchmarks: every distinct call that a model really makes, from resnet_fused/workload.py."""

from __future__ import annotations

import collections
import dataclasses
import importlib

import torch

from resnet_fused import ops, workload

OPS = ("conv_bn_relu", "conv_bn_relu_pool", "bn_relu", "add_relu")
DIRECTIONS = ("forward", "backward")
# What is differentiated, of the arguments a case has; the stem with its pool is for values only.
WANTED = {"conv_bn_relu": ("x", "weight", "residual"), "bn_relu": ("x", "weight", "bias", "residual"),
          "add_relu": ("x", "residual")}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """`conv_bn_relu` in evaluation (its backward: frozen batch norm), the stem with its max-pool, `bn_relu` in training,
    `add_relu`."""

    op: str
    direction: str
    call: workload.Call
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
        if self.op in ("conv_bn_relu", "bn_relu"):
            text += " +add" * (self.call["residual"] is not None) + " -relu" * (not self.call["relu"])
        return text

    def arguments(self, device, seed):
        """{name: tensor or value} of one call."""
        names = [name for name, _ in self.call.arguments]
        a = dict(zip(names, workload.tensors(self.call, device, seed), strict=True))
        if self.op == "bn_relu":  # half types train under autocast, which leaves batch norm's parameters in float32
            a |= {name: a[name].float() for name in ("weight", "bias")}
        return a

    @property
    def reference(self):
        module = "_conv_bn_relu_pool" if self.op == "conv_bn_relu_pool" else self.op
        return importlib.import_module(f"resnet_fused.ops.{module}").reference

    @property
    def public(self):
        return getattr(ops, self.op)

    def run(self, function, a):
        """`function`, with the signature of the public op and its reference, on the arguments `a`."""
        if self.op == "add_relu":
            return function(a["x"], a["residual"])
        if self.op == "bn_relu":
            return function(
                a["x"], a["weight"], a["bias"], a["mean"], a["spread"], a["residual"],
                training=True, eps=1e-5, relu=a["relu"],
            )  # fmt: skip
        if self.op == "conv_bn_relu_pool":
            return function(
                a["x"], a["weight"], a["bn_weight"], a["bn_bias"], a["mean"], a["var"],
                stride=a["stride"], padding=a["padding"], eps=a["eps"],
            )  # fmt: skip
        return function(
            a["x"], a["weight"], a["bn_weight"], a["bn_bias"], a["mean"], a["var"], a["residual"],
            stride=a["stride"], padding=a["padding"], dilation=a["dilation"], groups=a["groups"], eps=a["eps"],
            relu=a["relu"],
        )  # fmt: skip

    def differentiable(self, a):
        """(`a` with leaves that want gradients, those leaves)."""
        leaves = {name: a[name].detach().requires_grad_() for name in WANTED[self.op] if a.get(name) is not None}
        return a | leaves, list(leaves.values())

    @property
    def out_shape(self):
        return workload.out_shape(self.call)

    @property
    def flops(self):
        if not self.op.startswith("conv"):
            return 0
        k, c, r, s = self.call["weight"].shape
        n, _, p, q = workload.out_shape(workload.convolutions(self.call)[0])
        forward = 2 * n * k * p * q * c * r * s
        return forward if self.direction == "forward" else 2 * forward  # gradients of x and of weight

    def nbytes(self, a):
        """Bytes if every tensor were moved once. Backward: the gradient in, what was saved, the gradients out."""
        tensors = [t for t in a.values() if isinstance(t, torch.Tensor)]
        out = torch.Size(self.out_shape).numel() * a["x"].element_size()
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
    return workload.Call("conv_bn_relu_pool", (*((name, call[name]) for name in workload.CONVOLUTION), *rest))


def collect(model, batch, size, dtype, chosen=OPS, directions=DIRECTIONS):
    """The cases of `model` (channels_last) at that batch, in the order of the network."""
    shape = (batch, 3, size, size)
    evaluation = collections.Counter()
    for call, count in workload.calls(model, shape, dtype).items():
        evaluation.update(dict.fromkeys(workload.convolutions(call), count))
    found = {"conv_bn_relu": evaluation, "conv_bn_relu_pool": {}, "bn_relu": {}, "add_relu": {}}
    if "bn_relu" in chosen:
        training = workload.calls(model, shape, dtype, train=True)
        found["bn_relu"] = {c: n for c, n in training.items() if c.op == "bn_relu"}
    for call, count in evaluation.items():
        if (spec := call["residual"]) is not None:
            found["add_relu"][workload.Call("add_relu", (("x", spec), ("residual", spec)))] = count
        elif call["weight"].shape[1] == 3:
            found["conv_bn_relu_pool"][_with_pool(call)] = count
    return [
        Case(op, direction, call, count)
        for op in chosen
        for call, count in found[op].items()
        for direction in directions
        if direction == "forward" or op != "conv_bn_relu_pool"
    ]
