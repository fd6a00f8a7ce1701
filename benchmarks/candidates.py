"""Who competes for one case: our backends, and the peers at their best. All see channels_last tensors of one dtype."""

import functools

import torch
from torch import nn

from resnet_fused import dispatch, frozen_conv
from resnet_fused.fold import fold
from resnet_fused.freeze import Site

PEERS = ("eager", "fused", "compile")


def backends(device, conv):
    """Names of our backends that can run here; "eager" competes as a peer, "torch" is for convolutions. One that hands the
    call on to another is told by `runs_itself`."""
    return [
        name
        for name, b in dispatch.BACKENDS.items()
        if name != "eager" and (conv or name != "torch")
        and b.takes(device) and b.why_not() is None
        and not (name == "triton" and device == "cpu")  # the interpreter: numbers, no speed
    ]  # fmt: skip


def forward(case, device, peers, exactly=False):
    """{name: (kind, maker)}; `maker(a)`: a function without arguments that makes the call on the arguments `a`."""
    conv = case.op == "conv_bn_relu"
    made = {name: ("ours", functools.partial(_ours, case, name)) for name in backends(device, conv)}
    if conv and device == "cpu" and "fused" in peers:
        site = _site(case, case.arguments("cpu", 0))
        for way in frozen_conv.ways(site, case.call["x"].dtype, exactly):
            kind = "peer" if way is frozen_conv.OneDNN else "ours"
            made["onednn fused" if kind == "peer" else way.name] = (kind, functools.partial(_frozen, case, way))
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
    made = dict.fromkeys(backends(device, case.op == "conv_bn_relu"), ("ours", case.public))
    if "eager" in peers:
        made["eager"] = ("peer", case.reference)
    if "compile" in peers:
        made["torch.compile"] = ("peer", torch.compile(case.reference, dynamic=False))
    return made


def runs_itself(name, function):
    """(whether the backend `name` runs the call itself, the result); peers always do."""
    with dispatch.record() as noted:
        out = function()
    return name not in dispatch.BACKENDS or name == "eager" or noted[0][2].backend == name, out


def under(name, function):
    """`function` inside of our backend `name`, or as it is for a peer."""
    if name not in dispatch.BACKENDS or name == "eager":
        return function

    def run():
        with dispatch.backend(name):
            return function()

    return run


def _ours(case, name, a):
    return under(name, functools.partial(case.run, case.public, a))


def _site(case, a):
    k, c, r, s = a["weight"].shape
    conv = nn.Conv2d(c * a["groups"], k, (r, s), a["stride"], a["padding"], a["dilation"], a["groups"], bias=False)
    bn = nn.BatchNorm2d(k, eps=a["eps"])
    conv.weight, bn.weight, bn.bias = (nn.Parameter(a[n]) for n in ("weight", "bn_weight", "bn_bias"))
    bn.running_mean, bn.running_var = a["mean"], a["var"]
    return Site("case", conv, bn, a["relu"], a["residual"] is not None, shape=tuple(a["x"].shape))


def _frozen(case, way, a):
    """Folded and packed; the residual is dead in a network and written over, so the call has one of its own."""
    run = way(_site(case, a), a["x"].dtype)
    residual = None if a["residual"] is None else a["residual"].clone(memory_format=torch.channels_last)
    x = a["x"].contiguous(memory_format=torch.channels_last)
    return lambda: run(x) if residual is None else run(x, residual)


def _cudnn(case, a):
    """cuDNN's own fusion, with the batch norm folded into weight and bias."""
    weight, bias = (t.to(a["x"].dtype) for t in fold(*_modules(case, a)))
    weight = weight.contiguous(memory_format=torch.channels_last)
    conv = a["stride"], a["padding"], a["dilation"], a["groups"]
    if a["residual"] is not None:
        return lambda: torch.cudnn_convolution_add_relu(a["x"], weight, a["residual"], 1.0, bias, *conv)
    if a["relu"]:
        return lambda: torch.cudnn_convolution_relu(a["x"], weight, bias, *conv)
    return lambda: torch.nn.functional.conv2d(a["x"], weight, bias, *conv)


def _modules(case, a):
    site = _site(case, a)
    return site.conv, site.bn
