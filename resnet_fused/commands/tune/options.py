"""The ways to run a call that are worth measuring: backends, and launch configurations of those that have several."""

import torch

from ... import dispatch
from ...kernels.hopper.plane import cuda as cuda_plane
from ...kernels.triton import schedule
from . import calls

# The ops of a convolution: torch's own, followed by a pass if it is a forward op, is a way to run them.
CONVOLUTIONS = ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool", "conv_stats", "conv_input_grad")


def detail(call):
    """What the dispatcher is told of a convolution besides its tensors."""
    if call.op not in CONVOLUTIONS:
        return ()
    given = dict(call.arguments)
    weight = given["weight"].shape
    return (
        (weight[1], weight[0], *weight[2:]) if call.op == "conv_input_grad" else weight,
        given["stride"],
        given["padding"],
        given.get("dilation", (1, 1)),
        given.get("groups", 1),
    )


def options(call, device):
    """{name: (backend, launch configuration or None)} that may run `call`; "eager" is always one of them, of the
    gradient of a convolution's input "torch"."""
    conv = call.op in CONVOLUTIONS
    found = {}
    for name, backend in dispatch.BACKENDS.items():
        able = backend.takes(device.type) and backend.why_not() is None
        interpreted = name == "triton" and device.type == "cpu"
        if name in dispatch.NARROW and not _suits(call, name):
            continue
        if call.op == "conv_input_grad" and name not in (*dispatch.NARROW, "torch"):
            continue
        if able and not interpreted and (conv or name != "torch"):
            found[name] = (name, None)
    # What needs no compiler first: there may be no time for the rest.
    configurations = [(name, c) for name in dispatch.TILED if name in found for c in _tiles(call, name, device)]
    configurations += [("triton", c) for c in _configurations(call)] if "triton" in found else []
    if "cuda_plane" in found:
        configurations += [("cuda_plane", c) for c in cuda_plane.alternatives(_input(call).shape[0])]
    for name, config in configurations:
        found[f"{name} {' '.join(f'{k}={v}' for k, v in config.items())}"] = (name, config)
    return found


def _tiles(call, backend, device):
    """Tiles and slices of the compiled convolutions: all that can run the shape and are worth a measurement."""
    if call.op not in ("conv_bn_relu", "conv_bn_relu_pair", "conv_stats"):
        return []
    x, weight = (
        torch.empty(s.shape, dtype=s.dtype, device=device).to(memory_format=torch.channels_last)
        for s in (call["x"], call["weight"])
    )
    stride, padding, dilation, groups = detail(call)[1:]
    ask = dispatch.BACKENDS[backend].kernel("conv_bn_relu", "conv_choices")
    most = 1 if call.op == "conv_stats" else 32
    text = ask(x, weight, stride, padding, dilation, groups, most, clusters=call.op == "conv_bn_relu")
    choices = dispatch.tiles(text)
    if call.op == "conv_stats":
        return [{"tile": choice["tile"]} for choice in choices]
    return choices + [{"tile": "apart"}] * (call.op == "conv_bn_relu_pair")


def _suits(call, name):
    """Whether a backend of dispatch.NARROW is worth a measurement."""
    if call.op not in dispatch.NARROW_OPS:
        return False
    narrow, x, (weight, *geometry) = dispatch.NARROW[name], _input(call), detail(call)
    return narrow.refusal(x.shape, weight, x.dtype, *geometry) is None and narrow.suits(x.shape, weight)


def _input(call):
    """What a kernel of dispatch.NARROW_OPS multiplies with the weight."""
    return call["grad" if call.op == "conv_input_grad" else "x"]


def _configurations(call):
    if call.op != "conv_bn_relu":
        return []
    x, weight, groups = call["x"], call["weight"], call["groups"]
    n, k, p, q = calls.out_shape(call)
    precision = schedule.fp32_precision() if x.dtype == torch.float32 else "ieee"
    c, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
    default = schedule.conv(n * p * q, k // groups, c, taps, groups, x.dtype.itemsize, precision)
    return schedule.conv_alternatives(default, x.dtype.itemsize)
