"""The cases of convolutions (see cases.py), in every kind of launch configuration, and what torch's operators make of
them."""

import contextlib

import torch
import torch.nn.functional as F

from ...kernels import e4m3, eager, layout
from ...kernels.epilogue import NONE, RELU, Epilogue
from ...kernels.shapes import Convolution, pooled_shape
from .cases import EPS, Case, like, norm_in, sums
from .families import name_of

ONE = (1, 1)


def _geometry(x, weight, stride=1, padding=0, dilation=1, groups=1):
    return x, weight, (stride, stride), (padding, padding), (dilation, dilation), groups


# What it has besides an odd size -> x, weight, stride, padding, dilation, groups
CONVOLUTIONS = {
    "ragged channels": _geometry((2, 13, 6, 5), (10, 13, 3, 3), 2, 1),
    "one pixel": _geometry((4, 16, 1, 1), (24, 16, 3, 3), 1, 1),
    "one channel": _geometry((1, 1, 9, 9), (16, 1, 3, 3), 1, 1),
    "two groups": _geometry((2, 16, 6, 6), (32, 8, 3, 3), 1, 1, 1, 2),
    "dilation": _geometry((1, 8, 9, 9), (8, 8, 3, 3), 1, 2, 2),
    "many channels": _geometry((1, 256, 4, 3), (64, 256, 3, 3), 1, 1),
    "projection": _geometry((3, 64, 5, 6), (128, 64, 1, 1), 2),
    "layer1": _geometry((9, 64, 2, 15), (64, 64, 3, 3), 1, 1),
    "two groups of 64 images": _geometry((66, 64, 2, 3), (128, 64, 3, 3), 1, 1),
}
# Grids of many blocks, for a device that is no emulator.
LARGE = {
    "layer2": _geometry((8, 128, 28, 28), (128, 128, 3, 3), 1, 1),
    "layer4": _geometry((66, 512, 7, 7), (512, 512, 3, 3), 1, 1),
    "layer1, large": _geometry((16, 64, 56, 56), (64, 64, 3, 3), 1, 1),
}
STEMS = {
    "stem": _geometry((2, 3, 21, 18), (16, 3, 7, 7), 2, 3),
    "gray stem": _geometry((1, 1, 9, 9), (8, 1, 3, 3), 1, 1),
}


def _evaluation(conv):
    def launch(kernel, t):
        out = _result(t, conv.out_shape)
        kernel(
            t["x"],
            t["filter"],
            Epilogue(norm_in(t), t["residual"], RELU if t["residual"] is not None else NONE),
            out,
            conv,
        )
        return {"out": out}

    return launch


def _pair(conv, conv2):
    def launch(kernel, t):
        out, out2 = _result(t, conv.out_shape), _result(t, conv2.out_shape)
        kernel(t["x"], t["filter"], norm_in(t), out, conv, t["filter2"], norm_in(t, "2"), out2, conv2)
        return {"out": out, "out2": out2}

    return launch


def _pool(conv):
    def launch(kernel, t):
        kernel(t["x"], t["filter"], Epilogue(norm_in(t)), out := _result(t, pooled_shape(conv.out_shape)), conv)
        return {"out": out}

    return launch


def _statistics(conv):
    def launch(kernel, t):
        out, mean, invstd = _result(t, conv.out_shape), *(sums(t["x"], conv.weight[0]) for _ in range(2))
        kernel(t["x"], t["filter"], out, mean, invstd, None, None, None, conv, 0.1, EPS)
        # Statistics belong to the stored values: each is compared with that of its own `out`, in deviations.
        stored = out.double().transpose(0, 1).flatten(1)
        exact = (stored.var(1, correction=0) + EPS).rsqrt()
        off = (mean - stored.mean(1)) * exact, invstd / exact - 1
        return {"out": out, "mean": (1 + off[0]).to(mean.dtype), "invstd": (1 + off[1]).to(mean.dtype)}

    return launch


def _alone(conv):
    def launch(kernel, t):
        kernel(t["x"], t["filter"], out := _result(t, conv.out_shape), conv)
        return {"out": out}

    return launch


def _weight_gradient(conv):
    def launch(kernel, t):
        kernel(t["grad"], t["x"], out := like(t["filter"]), conv)
        return {"grad_weight": out}

    return launch


def _input_gradient(conv, backward):
    def launch(kernel, t):
        kernel(t["grad"], t["filter"], out := _result(t, conv.x), backward)
        return {"grad_x": out}

    return launch


def _result(t, shape):
    of = t["grad"] if "grad" in t else t["x"]
    return like(torch.empty(shape, dtype=of.dtype, device=of.device, memory_format=layout.CHANNELS_LAST))


def _made(op, conv, values, i):
    """(tensors, launch) of one convolution. Every second weight is contiguous, every second has no residual."""
    weight = values.filter(conv.weight, layout.CHANNELS_LAST if i % 2 else layout.CONTIGUOUS)
    if op == "conv_input_grad":
        backward = Convolution(conv.out_shape, (conv.weight[1], conv.weight[0], *conv.weight[2:]), *conv[2:])
        return {"grad": values.map(conv.out_shape), "filter": weight}, _input_gradient(conv, backward)
    if op == "conv_weight_grad":  # of the filter only shape and strides are read
        return {"grad": values.map(conv.out_shape), "x": values.map(conv.x), "filter": weight}, _weight_gradient(conv)
    if op == "conv":
        return {"x": values.map(conv.x), "filter": weight}, _alone(conv)
    tensors = {"x": values.map(conv.x), "filter": weight, **values.norm(conv.weight[0])}
    if op == "conv_stats":
        return tensors, _statistics(conv)
    if op == "conv_bn_relu_pool":
        return tensors, _pool(conv)
    if op == "conv_bn_relu_pair":
        stride = tuple(-(-size // out) for size, out in zip(conv.x[2:], conv.out_shape[2:], strict=True))
        conv2 = Convolution(conv.x, (conv.weight[0], conv.x[1], 1, 1), conv.dtype, stride, (0, 0), ONE, 1)
        tensors |= {"filter2": values.filter(conv2.weight), **values.norm(conv.weight[0], "2")}
        return tensors, _pair(conv, conv2)
    return tensors | {"residual": None if i % 2 else values.map(conv.out_shape)}, _evaluation(conv)


def _asked(op, conv):
    """The Convolution by which a backend decides whether it takes `op`."""
    if op != "conv_input_grad":
        return conv
    return Convolution(conv.out_shape, (conv.weight[1], conv.weight[0], *conv.weight[2:]), *conv[2:])


def cases(op, family, values, backend, device):
    """The Cases of a convolution's op that `backend` takes, in the launch configurations of `family`."""
    shapes = STEMS if op == "conv_bn_relu_pool" else CONVOLUTIONS if device.type == "cpu" else CONVOLUTIONS | LARGE
    for i, (name, (x, weight, *geometry)) in enumerate(shapes.items()):
        conv = Convolution(x, weight, values.dtype, *geometry)
        asked = _asked(op, conv)
        if backend.refusal(op, asked) is not None or (op == "conv_bn_relu_pair" and conv.groups > 1):
            continue
        for allowed in (False, True) if values.dtype == torch.float32 and device.type == "cuda" else (False,):
            with tf32(allowed):  # which decides the tiles
                kinds = _kinds(backend, op, asked, family)
            for config in kinds:
                named = "".join(f", {key}={value}" for key, value in (config or {}).items())
                tensors, launch = _made(op, conv, values, i)
                yield Case(f"{name}{named}{', TF32' * allowed}", tensors, launch, config, allowed)


def _kinds(backend, op, convolution, family):
    """The default launch configuration, and one of each kind, whatever the number of slices."""
    default = [] if family != op else [None]
    if backend.compiles:
        return default
    found = {}
    for config in backend.configurations(op, convolution):
        if name_of(op, config) == family:
            found.setdefault(tuple((key, value) for key, value in config.items() if key != "splits"), config)
    return [*default, *found.values()]


@contextlib.contextmanager
def tf32(allowed):
    """Context manager: whether convolutions of float32 may use TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _conv(x, weight, conv):
    return F.conv2d(x, weight, None, *conv.geometry)


def conv_bn_relu(x, weight, epilogue, out, conv):
    eager.apply(_conv(x, weight, conv), epilogue, out)


def conv_bn_relu_pair(x, weight, norm, out, conv, weight2, norm2, out2, conv2):
    eager.apply(_conv(x, weight, conv), Epilogue(norm), out)
    eager.apply(_conv(x, weight2, conv2), Epilogue(norm2, None, NONE), out2)


def conv_bn_relu_pool(x, weight, epilogue, out, conv):
    z = _conv(x, weight, conv)
    eager.apply(z, epilogue, z)
    out.copy_(F.max_pool2d(z, 3, 2, 1))


def conv_stats(x, weight, out, mean, invstd, running_mean, running_var, batches, conv, momentum, eps):
    eager.stats(out.copy_(_conv(x, weight, conv)), mean, invstd, running_mean, running_var, batches, momentum, eps)


def conv(x, weight, out, conv):
    out.copy_(_conv(x, weight, conv))


def conv_weight_grad(grad, x, out, conv):
    out.copy_(torch.nn.grad.conv2d_weight(x, out.shape, grad, *conv.geometry))


def conv_input_grad(grad, weight, out, conv):
    out.copy_(torch.nn.grad.conv2d_input(out.shape, weight, grad, *conv.geometry))


def pool_linear(x, weight, bias, out):
    out.copy_(F.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), weight, bias))


# op -> torch's operators with the signature of its launcher
REFERENCES = eager.PASSES | {
    function.__name__: function
    for function in (
        conv,
        conv_bn_relu,
        conv_bn_relu_pair,
        conv_bn_relu_pool,
        conv_stats,
        conv_input_grad,
        conv_weight_grad,
        pool_linear,
    )
}


def e4m3_values(shape, device):
    return (
        e4m3.narrow(torch.randn(shape, device="cpu") * 60, e4m3.E4M3)
        .to(device)
        .contiguous(memory_format=layout.CHANNELS_LAST)
    )


# x, weight, stride, padding; whether the result is e4m3
FP8 = {
    "3x3": ((2, 64, 5, 7), (64, 64, 3, 3), 1, 1, True),
    "ragged channels": ((3, 48, 3, 3), (40, 48, 3, 3), 2, 1, False),
    "projection": ((2, 256, 4, 4), (24, 256, 1, 1), 2, 0, True),
}


def fp8_shares(op, kernel, device):
    """(label, share of what e4m3 arithmetic may err by) for the two ops on e4m3 values."""
    if op == "quantise_fp8":
        x = (
            (torch.randn(3, 16, 5, 7, device="cpu") * 300)
            .to(device, torch.bfloat16)
            .contiguous(memory_format=layout.CHANNELS_LAST)
        )
        kernel(x, 0.37, out := torch.empty_like(x, dtype=e4m3.E4M3))
        yield "3x16x5x7", e4m3.share(out, x.double() * 0.37, x.double().abs() * 0.37, 2.0**-20)
        return
    for name, (x, weight, stride, padding, narrow) in FP8.items():
        where = (stride, stride), (padding, padding), ONE
        conv = Convolution(x, weight, e4m3.E4M3, *where, 1)
        x, weight, residual = (e4m3_values(shape, device) for shape in (x, weight, conv.out_shape))
        scale = ((torch.rand(len(weight), device="cpu") + 0.5) / (36 * weight[0].numel() ** 0.5)).to(device)
        arguments = x, weight, scale, (torch.randn(len(weight), device="cpu") * 30).to(device), residual, 0.37
        out = torch.empty_like(residual, dtype=e4m3.E4M3 if narrow else torch.bfloat16)
        kernel(*arguments, RELU, out, conv)
        oracle, size = e4m3.reference(*arguments, *where, RELU), e4m3.magnitude(*arguments, *where)
        yield name, e4m3.share(out, oracle, size, e4m3.SLACK)
