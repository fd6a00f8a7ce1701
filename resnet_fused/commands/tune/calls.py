"""Which fused ops a model calls, with the shapes, dtypes and layouts of their arguments; and random tensors like these.

The calls come from one pass with fake tensors: nothing is computed, so a batch of 256 costs what a batch of 1 does (0.2 s).
"""

import collections
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels import layout
from ...kernels.epilogue import NONE, RELU
from ...kernels.shapes import out_shape as convolved_shape
from ...modules import training
from . import training_calls


class Spec(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_format: torch.memory_format


class Call(NamedTuple):
    """One call of an op of this package: (argument name, `Spec` or value) in the order of its schema."""

    op: str
    arguments: tuple

    def __getitem__(self, name):
        return dict(self.arguments)[name]

    def function(self):
        return training_calls.PASSES.get(self.op) or getattr(torch.ops.resnet_fused, self.op)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "resnet_fused":
            names = (argument.name for argument in func._schema.arguments)
            described = tuple((name, _describe(value)) for name, value in zip(names, args, strict=True))
            self.calls[Call(func.overloadpacket.__name__, described)] += 1
        return func(*args, **(kwargs or {}))


def _describe(value):
    if isinstance(value, torch.Tensor):
        return Spec(tuple(value.shape), value.dtype, layout.nearest_format(value))
    return tuple(value) if isinstance(value, list) else value


def calls(model, shape, dtype, train=False):
    """{Call: how often} of one pass of `model` over an input of `shape`; `train`: forward in training, and backward.

    The model is not run and not changed: its parameters are replaced by fake ones in `dtype`.
    """
    fake = FakeTensorMode()
    device = next(model.parameters()).device
    state = {
        name: fake.from_tensor(tensor.to(dtype) if tensor.is_floating_point() else tensor).requires_grad_(learns)
        for name, tensor, learns in (
            (name, tensor.detach(), train and tensor.requires_grad)
            for name, tensor in model.state_dict(keep_vars=True).items()
        )
    }
    modes = {module: module.training for module in model.modules()}
    recorder, inside = _Recorder(), training_calls.Recorder()
    try:
        model.train(train)
        with fake, torch.set_grad_enabled(train):
            x = torch.empty(shape, dtype=dtype, device=device)
            with recorder, training.one_op_at_a_time():
                out = torch.func.functional_call(model, state, (x,))
                if train:
                    out.float().square().mean().backward()
            if train:
                with inside:
                    torch.func.functional_call(model, state, (x,))
    finally:
        for module, was in modes.items():
            module.training = was
    for op, arguments in inside.calls:
        recorder.calls[Call(op, tuple((name, _describe(value)) for name, value in arguments))] += 1
    return dict(recorder.calls)


# The arguments that all evaluations of a convolution begin with.
CONVOLUTION = ("x", "weight", "mean", "var", "bn_weight", "bn_bias")


def convolutions(call):
    """The `conv_bn_relu` calls that `call` stands for: of the stem without its pool, both of a pair, or none."""
    if call.op == "conv_bn_relu":
        return [call]
    given = dict(call.arguments)
    if call.op == "conv_bn_relu_pool":
        return [_convolution(given, CONVOLUTION, (1, 1), given["stride"], given["padding"], given["eps"], RELU)]
    if call.op == "conv_bn_relu_pair":
        second = ("x", *(f"{name}2" for name in CONVOLUTION[1:]))
        return [
            _convolution(given, CONVOLUTION, given["dilation"], given["stride"], given["padding"], given["eps"], RELU),
            _convolution(given, second, (1, 1), given["stride2"], (0, 0), given["eps2"], NONE),
        ]
    return []


def _convolution(given, names, dilation, stride, padding, eps, activation):
    tensors = [(to, given[name]) for to, name in zip(CONVOLUTION, names, strict=True)]
    rest = {"residual": None, "stride": stride, "padding": padding, "dilation": dilation, "groups": 1, "eps": eps,
            "activation": activation}  # fmt: skip
    return Call("conv_bn_relu", (*tensors, *rest.items()))


def out_shape(call):
    """The shape of the first result of `call`, from the op's own fake."""
    if call.op == "conv_input_grad":
        return (call["grad"].shape[0], call["weight"].shape[1] * call["groups"], *call["size"])
    if call.op in training_calls.PASSES:
        x = call["x"].shape
        if call.op == "bn_add_bn_relu":
            return x
        return tuple(convolved_shape(x, call["weight"].shape, call["stride"], call["padding"], call["dilation"]))
    arguments = [
        torch.empty(value.shape, dtype=value.dtype, device="meta").contiguous(memory_format=value.memory_format)
        if isinstance(value, Spec) else value
        for _, value in call.arguments
    ]  # fmt: skip
    out = call.function()(*arguments)
    return tuple((out[0] if isinstance(out, tuple) else out).shape)


def tensors(call, device, seed=0):
    """The arguments of `call` as a list. Values are random and normal, never zeros; variances are positive."""
    generator = torch.Generator(device).manual_seed(seed)
    return [_value(name, value, generator) for name, value in call.arguments]


def _value(name, spec, generator):
    if not isinstance(spec, Spec):
        return list(spec) if isinstance(spec, tuple) else spec
    if not spec.dtype.is_floating_point:
        return torch.ones(spec.shape, dtype=spec.dtype, device=generator.device)  # a counter of batches
    variance = name in ("var", "var2", "var_or_invstd", "var_or_invstd_z", "running_var")
    draw = torch.rand if variance else torch.randn
    t = draw(spec.shape, generator=generator, device=generator.device)
    if variance:
        t += 0.5
    elif name == "weight" and len(spec.shape) == 4:
        t *= (2 / (spec.shape[1] * spec.shape[2] * spec.shape[3])) ** 0.5  # the variance of x stays as it is
    elif name == "out":
        t.relu_()  # a saved output is its own mask
    return t.to(spec.dtype).contiguous(memory_format=spec.memory_format)
