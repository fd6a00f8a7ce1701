"""Which fused ops a model really calls, with the shapes, dtypes and layouts of their arguments, and tensors like them.

One pass with fake tensors: nothing is computed, so a batch of 256 costs what a batch of 1 does (0.2 s).
"""

import collections
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import layout


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
        return getattr(torch.ops.resnet_fused, self.op)


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
    """{Call: how often} of one pass of `model` over an input of `shape`.

    The model is not run and not changed: its parameters are replaced by fake ones in `dtype`. `train`: the passes of batch
    norm in a training step, forward and backward, under the names of their own ops (a training block is one op, which asks
    for the same passes).
    """
    evaluation = _evaluation(model, shape, dtype)
    if not train:
        return evaluation
    # Evaluation may prefer another layout than the weights have; training on a CPU keeps theirs.
    weight = next(p for p in model.parameters() if p.dim() == 4)
    on_cpu = weight.device.type == "cpu"
    memory_format = layout.nearest_format(weight) if on_cpu else layout.CHANNELS_LAST
    training = collections.Counter()
    for call, count in evaluation.items():
        for convolution in convolutions(call):
            training.update(dict.fromkeys(_batch_norm(convolution, memory_format), count))
    return dict(training)


def _evaluation(model, shape, dtype):
    fake = FakeTensorMode()
    device = next(model.parameters()).device
    state = {
        name: fake.from_tensor(tensor.detach().to(dtype) if tensor.is_floating_point() else tensor)
        for name, tensor in model.state_dict().items()
    }
    training = {module: module.training for module in model.modules()}
    recorder = _Recorder()
    try:
        model.eval()
        with fake, torch.no_grad(), recorder:
            torch.func.functional_call(model, state, (torch.empty(shape, dtype=dtype, device=device),))
    finally:
        for module, was in training.items():
            module.training = was
    return dict(recorder.calls)


# The arguments that all evaluations of a convolution begin with.
CONVOLUTION = ("x", "weight", "mean", "var", "bn_weight", "bn_bias")


def convolutions(call):
    """The `conv_bn_relu` calls that `call` stands for: of the stem without its pool, both of a pair, or none."""
    if call.op == "conv_bn_relu":
        return [call]
    given = dict(call.arguments)
    if call.op == "conv_bn_relu_pool":
        return [_convolution(given, CONVOLUTION, (1, 1), given["stride"], given["padding"], given["eps"], True)]
    if call.op == "conv_bn_relu_pair":
        second = ("x", *(f"{name}2" for name in CONVOLUTION[1:]))
        return [
            _convolution(given, CONVOLUTION, given["dilation"], given["stride"], given["padding"], given["eps"], True),
            _convolution(given, second, (1, 1), given["stride2"], (0, 0), given["eps2"], False),
        ]
    return []


def _convolution(given, names, dilation, stride, padding, eps, relu):
    tensors = [(to, given[name]) for to, name in zip(CONVOLUTION, names, strict=True)]
    rest = {"residual": None, "stride": stride, "padding": padding, "dilation": dilation, "groups": 1, "eps": eps,
            "relu": relu}  # fmt: skip
    return Call("conv_bn_relu", (*tensors, *rest.items()))


def _batch_norm(call, memory_format):
    """What training does after the convolution of `call`: statistics, application, and the backward of both."""
    x = Spec(out_shape(call), call["x"].dtype, memory_format)
    masked = call["relu"] and call["weight"].shape[1] != 3  # the stem's ReLU is undone together with its pool
    channel = Spec(x.shape[1:2], torch.float32, torch.contiguous_format)
    running, weight, bias, relu = call["mean"], call["bn_weight"], call["bn_bias"], call["relu"]
    residual = None if call["residual"] is None else x
    return [
        Call("bn_stats", (("x", x), ("running_mean", running), ("running_var", running), ("num_batches_tracked", None),
                          ("momentum", 0.1), ("eps", call["eps"]))),
        Call("bn_relu", (("x", x), ("mean", channel), ("spread", channel), ("weight", weight), ("bias", bias),
                         ("residual", residual), ("eps", call["eps"]), ("batch_stats", True), ("relu", relu))),
        Call("bn_relu_backward", (("grad", x), ("x", x), ("out", x if masked else None), ("mean", channel),
                                  ("spread", channel), ("weight", weight), ("eps", None), ("relu", masked),
                                  ("want_x", True), ("want_affine", True), ("want_residual", residual is not None))),
    ]  # fmt: skip


def out_shape(call):
    """The shape of the first result of `call`, from the op's own fake."""
    arguments = [
        torch.empty(value.shape, dtype=value.dtype, device="meta").contiguous(memory_format=value.memory_format)
        if isinstance(value, Spec) else value
        for _, value in call.arguments
    ]  # fmt: skip
    out = call.function()(*arguments)
    return tuple((out[0] if isinstance(out, tuple) else out).shape)


def tensors(call, device, seed=0):
    """The arguments of `call` as a list, with random values: normal ones, never zeros, statistics that make sense."""
    generator = torch.Generator(device).manual_seed(seed)
    return [_value(name, value, generator) for name, value in call.arguments]


def _value(name, spec, generator):
    if not isinstance(spec, Spec):
        return list(spec) if isinstance(spec, tuple) else spec
    if not spec.dtype.is_floating_point:
        return torch.ones(spec.shape, dtype=spec.dtype, device=generator.device)  # a counter of batches
    variance = name in ("var", "spread", "running_var")
    draw = torch.rand if variance else torch.randn
    t = draw(spec.shape, generator=generator, device=generator.device)
    if variance:
        t += 0.5
    elif name == "weight" and len(spec.shape) == 4:
        t *= (2 / (spec.shape[1] * spec.shape[2] * spec.shape[3])) ** 0.5  # the variance of x stays as it is
    elif name == "out":
        t.relu_()  # a saved output is its own mask
    return t.to(spec.dtype).contiguous(memory_format=spec.memory_format)
