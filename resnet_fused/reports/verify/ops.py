"""The op checks of `verify`: the layers of ResNet-34 with a small batch, forward, backward and running statistics."""

import torch

from ... import dispatch, ops
from ...kernels.shapes import Convolution
from ...measure.accuracy import absurd, budget_used, channel_dim_of, exact
from ...measure.trust.cases import Values
from ...ops.add_relu import reference as add_relu
from ...ops.bn_relu import reference as bn_relu
from ...ops.conv_bn_relu import reference as conv_bn_relu
from .masks import ConvolutionsInFloat32, WithMasks

LAYERS = ((2, 64, 56, 56), (2, 128, 28, 28), (2, 256, 14, 14), (2, 512, 7, 7))
# name, input, output channels, kernel size, stride; conv_bn_relu also runs without residual and ReLU: the shortcut
CONVOLUTIONS = (
    ("stem", (2, 3, 112, 112), 64, 7, 2),
    ("3x3", (2, 64, 56, 56), 64, 3, 1),
    ("3x3/2", (2, 64, 56, 56), 128, 3, 2),
    ("shortcut", (2, 64, 56, 56), 128, 1, 2),
    ("column", (2, 64, 56, 2), 64, 3, 2),  # torch's own is wrong on some machines: kernels/torch_convolution.py
    ("3x3", (2, 512, 7, 7), 512, 3, 1),
)


def backends_of(device):
    """The backends with kernels (or formulas) of their own that can run on `device` here."""
    found, device = dispatch.BACKENDS.values(), torch.device(device)
    return [b for b in found if b is not dispatch.TORCH and b.takes(device.type) and b.why_not(device) is None]


def check_ops(device, dtype, quick):
    """Yields (label, function that compares): see verify.py."""
    for backend in backends_of(device):
        # Slowly, and Triton's interpreter truncates to bfloat16.
        simulated = backend.simulated == device
        if simulated and dtype == torch.bfloat16:
            continue
        for what, shape, build in _cases(quick or simulated, dtype, backend):
            label = {"what": what, "shape": "x".join(map(str, shape)), "dtype": str(dtype)[6:]}
            label["backend"] = backend.name
            yield label, lambda build=build: _compare(*build(device, dtype))


def _cases(small, dtype, backend):
    """(what, shape, builder) of what `backend` runs, or hands on to torch's convolution and a pass of its own."""
    layers = LAYERS[2:] if small else LAYERS
    passes = "bn_relu" in backend.kernels
    for layer in layers if passes else ():
        shape = (2, layer[1] // 8, *layer[2:]) if small else layer
        for format_name, memory_format in (("", torch.channels_last), (" nchw", torch.contiguous_format)):
            if format_name and layer is not LAYERS[-1]:
                continue
            yield f"add_relu{format_name}", shape, _add_relu(shape, memory_format)
            yield f"bn_relu train{format_name}", shape, _bn_relu(shape, memory_format, True)
            yield f"bn_relu eval{format_name}", shape, _bn_relu(shape, memory_format, False)
    for name, layer, channels, kernel, stride in CONVOLUTIONS:
        # Of fewer than 16 channels torch's own gradient may end the process: kernels/torch_convolution.py.
        shape = (1, max(3, layer[1] // 4), *(min(n, max(7, n // 4)) for n in layer[2:])) if small else layer
        case = (shape, channels // 4 if small else channels, kernel, stride)
        weight, padding = (case[1], shape[1], kernel, kernel), kernel // 2
        convolution = Convolution(shape, weight, dtype, (stride, stride), (padding, padding), (1, 1), 1)
        if not passes and backend.refusal("conv_bn_relu", convolution) is not None:
            continue
        for mode in ("eval", "frozen"):
            yield f"conv_bn_relu {name} {mode}", shape, _conv_bn_relu(*case, name, mode)


def _values(shape, device, dtype, memory_format=torch.channels_last, std=1.0):
    return Values(dtype, device).map(shape, memory_format, 0.3 * std, std)


def _norm(channels, device):
    names = {"weight": "bn_weight", "bias": "bn_bias", "mean": "running_mean", "var_or_invstd": "running_var"}
    return {names[name]: t for name, t in Values(torch.float32, device).norm(channels).items()}


def _add_relu(shape, memory_format):
    def build(device, dtype):
        x, residual = (_values(shape, device, dtype, memory_format) for _ in range(2))
        return ops.add_relu, add_relu, {"x": x, "residual": residual}, {}, ("x", "residual")

    return build


def _bn_relu(shape, memory_format, training):
    def build(device, dtype):
        x, residual = (_values(shape, device, dtype, memory_format) for _ in range(2))
        norm = {name.removeprefix("bn_"): t for name, t in _norm(shape[1], device).items()}
        tensors = {"x": x, **norm, "residual": residual}
        return ops.bn_relu, bn_relu, tensors, {"training": training}, ("x", "weight", "bias", "residual")

    return build


def _conv_bn_relu(shape, channels, kernel, stride, name, mode):
    def build(device, dtype):
        std = (2 / (shape[1] * kernel * kernel)) ** 0.5
        tensors = {
            "x": _values(shape, device, dtype),
            "weight": _values((channels, shape[1], kernel, kernel), device, dtype),
        }
        tensors["weight"] *= std
        tensors |= _norm(channels, device)
        kwargs = {"stride": stride, "padding": kernel // 2, "relu": name != "shortcut"}
        if name == "3x3":
            tensors["residual"] = _values((shape[0], channels, *shape[2:]), device, dtype)
        # bn_weight wants no gradient: with one, the convolution and the batch norm are two ops
        wanted = [n for n in ("x", "weight", "bn_bias", "residual") if n in tensors] if mode == "frozen" else []
        return ops.conv_bn_relu, conv_bn_relu, tensors, kwargs, wanted

    return build


def _compare(function, reference, tensors, kwargs, wanted):
    """(error, eager's error, share of the budget, whether eager's output is absurd) of the worst of output, gradients and
    running statistics. Where it is absurd, the budget is that of eager with its convolutions in float32."""
    wide = {name: exact(t) for name, t in tensors.items()}
    exact_out = reference(**{n: t.clone() for n, t in wide.items()}, **kwargs)
    grad = _values(exact_out.shape, exact_out.device, tensors["x"].dtype) if wanted else None
    ours, eager = (_results(f, tensors, kwargs, wanted, grad) for f in (function, reference))
    if wrong := absurd([eager["out"]], [exact_out]):
        with ConvolutionsInFloat32():
            eager = _results(reference, tensors, kwargs, wanted, grad)
    exact_ours, exact_eager = (
        _results(reference, wide, kwargs, wanted, exact(grad), masks=~(r["out"] <= 0)) for r in (ours, eager)
    )
    exact_ours["out"] = exact_eager["out"] = exact_out
    scale = {name: t.abs().max().item() or 1.0 for name, t in exact_ours.items()}
    shares = {
        n: budget_used(t, eager[n], exact_ours[n], oracle_eager=exact_eager[n], channel_dim=channel_dim_of(t))
        for n, t in ours.items()
    }
    worst = max(shares, key=shares.get)
    errors = [
        (r[worst].double() - oracle[worst]).abs().max().item() / scale[worst]
        for r, oracle in ((ours, exact_ours), (eager, exact_eager))
    ]
    return *errors, shares[worst], wrong


def _results(function, tensors, kwargs, wanted, grad, masks=None):
    """{out, gradients, running statistics}; with `masks` the ReLU is that mask instead."""
    tensors = {n: t.clone().requires_grad_(n in wanted) for n, t in tensors.items()}
    if masks is None:
        out = function(**tensors, **kwargs)
    else:
        with WithMasks([masks]):
            out = function(**tensors, **kwargs)
    grads = torch.autograd.grad(out, [tensors[n] for n in wanted], grad) if wanted else ()
    buffers = {n: tensors[n] for n in tensors if n.startswith("running") and kwargs.get("training")}
    return {"out": out.detach(), **dict(zip((f"grad_{n}" for n in wanted), grads, strict=True)), **buffers}
