"""Who competes for one case: our backends, and the peers at their best. All see channels_last tensors of one dtype."""

import functools

import torch
import torch._functorch.config
from torch import nn

from resnet_fused import dispatch
from resnet_fused.frozen.cpu import convolutions
from resnet_fused.frozen.fold import fold
from resnet_fused.frozen.network import ConvBn
from resnet_fused.kernels.epilogue import NONE, RELU

PEERS = ("eager", "fused", "compile")


EAGER = dispatch.EAGER.name


def backends(device, op):
    """Names of our backends that run `op` here in earnest; "eager" competes as a peer. One that hands the call on to another
    is told by `runs_itself`."""
    return [
        name
        for name, b in dispatch.BACKENDS.items()
        if name != EAGER and dispatch.worth_measuring(b, op, torch.device(device))
    ]


def forward(case, device, peers, exactly=False):
    """{name: (kind, maker)}; `maker(a)`: a function without arguments that makes the call on the arguments `a`."""
    conv, able = case.op.startswith("conv"), backends(device, case.op)
    made = {name: ("ours", functools.partial(_ours, case, name)) for name in able}
    if case.op == "pool_linear":  # no op of the dispatcher: the static engine calls the kernel
        made = {f"{name}, one launch": ("ours", functools.partial(_head, name)) for name in able}
    if conv and device == "cpu" and "fused" in peers:
        first, *others = _steps(case, case.arguments("cpu", 0))
        kernels = convolutions.candidates(first, case.call["x"].dtype, exactly)
        for other in others:
            kernels = [
                kernel for kernel in kernels if kernel in convolutions.candidates(other, case.call["x"].dtype, exactly)
            ]
        for kernel in kernels:
            kind = "peer" if kernel.name.startswith("onednn") else "ours"
            name = kernel.name.replace("onednn", "onednn fused")
            made[name] = (kind, functools.partial(_frozen, case, kernel))
    if conv and device == "cuda" and "fused" in peers:
        made["cudnn fused"] = ("peer", functools.partial(_cudnn, case))
    if "eager" in peers:
        made["eager"] = ("peer", lambda a: functools.partial(case.run, case.reference, a))
    if "compile" in peers:
        compiled = torch.compile(case.reference, dynamic=False)
        made["torch.compile"] = ("peer", lambda a: functools.partial(case.run, compiled, a))
    return made


def backward(case, device, peers):
    """{name: (kind, function)} with the signature of the public op, to be differentiated; the backend counts in both
    passes (see `under`)."""
    made = dict.fromkeys(backends(device, case.op), ("ours", case.public))
    if "eager" in peers:
        made["eager"] = ("peer", case.reference)
    if "compile" in peers:
        # The graph is kept for the next call, so its backward must not reuse what the forward saved.
        torch._functorch.config.donated_buffer = False
        made["torch.compile"] = ("peer", torch.compile(case.reference, dynamic=False))
    return made


def runs_itself(name, function):
    """(whether the backend `name` runs the call itself, the result); peers always do."""
    with dispatch.record() as noted:
        out = function()
    return name not in dispatch.BACKENDS or name == EAGER or noted[0][2].backend == name, out


def under(name, function):
    """`function` inside of our backend `name`, or as it is for a peer."""
    if name not in dispatch.BACKENDS or name == EAGER:
        return function

    def run():
        with dispatch.backend(name):
            return function()

    return run


def _ours(case, name, a):
    return under(name, functools.partial(case.run, case.public, a))


def _head(name, a):
    kernel = dispatch.BACKENDS[name].kernels["pool_linear"]
    x, weight = a["x"], a["weight"]

    def run():
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        kernel(x, weight, a["bias"], out)
        return out

    return run


def _steps(case, a):
    """The convolution of a case, or both of a pair."""
    if case.op != "conv_bn_relu_pair":
        return [_step(case, a)]
    names = [name for name in a if name.endswith("2")]
    second = {name[:-1]: a[name] for name in names} | {"x": a["x"], "padding": (0, 0), "activation": NONE}
    return [_step(case, a), _step(case, second)]


def _step(case, a):
    k, c, r, s = a["weight"].shape
    groups, dilation = a.get("groups", 1), a.get("dilation", 1)
    conv = nn.Conv2d(c * groups, k, (r, s), a["stride"], a["padding"], dilation, groups, bias=False)
    bn = nn.BatchNorm2d(k, eps=a["eps"])
    conv.weight, bn.weight, bn.bias = (nn.Parameter(a[n]) for n in ("weight", "bn_weight", "bn_bias"))
    bn.running_mean, bn.running_var = a["mean"], a["var"]
    residual = None if a.get("residual") is None else 1
    return ConvBn(
        "case", conv, bn, residual=residual, output=2, relu=a.get("activation", RELU) == RELU,
        pool=case.op == "conv_bn_relu_pool", shape=tuple(a["x"].shape),
    )  # fmt: skip


def _frozen(case, kernel, a):
    """Folded and packed; the residual is dead in a network and written over, so the call has one of its own."""
    runs = [kernel(step, a["x"].dtype) for step in _steps(case, a)]
    residual = a.get("residual")
    residual = None if residual is None else residual.clone(memory_format=torch.channels_last)
    x = a["x"].contiguous(memory_format=torch.channels_last)
    if len(runs) > 1:
        return lambda: tuple(run(x) for run in runs)
    (run,) = runs
    return lambda: run(x) if residual is None else run(x, residual)


def _cudnn(case, a):
    """cuDNN's own fusion, with the batch norm folded into weight and bias."""
    runs = [_cudnn_step(step, a) for step in _steps(case, a)]
    return (lambda: tuple(run() for run in runs)) if len(runs) > 1 else runs[0]


def _cudnn_step(step, a):
    weight, bias = (t.to(a["x"].dtype) for t in fold(step.conv, step.bn))
    weight = weight.contiguous(memory_format=torch.channels_last)
    conv = step.conv.stride, step.conv.padding, step.conv.dilation, step.conv.groups
    if step.pool:
        run = functools.partial(torch.cudnn_convolution_relu, a["x"], weight, bias, *conv)
        return lambda: torch.nn.functional.max_pool2d(run(), 3, 2, 1)
    if step.residual:
        return lambda: torch.cudnn_convolution_add_relu(a["x"], weight, a["residual"], 1.0, bias, *conv)
    if step.relu:
        return lambda: torch.cudnn_convolution_relu(a["x"], weight, bias, *conv)
    return lambda: torch.nn.functional.conv2d(a["x"], weight, bias, *conv)
