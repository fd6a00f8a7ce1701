"""Small awkward inputs for every op of the backends. A launcher's results are compared with float64 beside torch's own
error, by the tolerance rule (measure/accuracy.py).

An entry of PASSES yields the Cases of an op for values of one dtype. `launch(kernel, tensors)` allocates the results,
filled with NaN, calls a launcher, and returns the results by name. The same function runs the launcher, torch's
operators in the same dtype, and torch's operators in float64 (compare.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...kernels import layout
from ...kernels.epilogue import NONE, RELU, Epilogue, norm_of

EPS = 1e-3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = {"nhwc": layout.CHANNELS_LAST, "nchw": layout.CONTIGUOUS}
# Four channels a vector and a tail, one pixel, one channel.
MAPS = ((2, 64, 7, 7), (3, 65, 5, 3), (4, 100, 1, 1), (5, 1, 6, 6))


class Case(NamedTuple):
    """One call of an op. `tf32`: whether TF32 is allowed in it."""

    label: str
    tensors: dict
    launch: Callable
    config: dict | None = None
    tf32: bool = False


class Values:
    """Random tensors of one dtype on a device."""

    def __init__(self, dtype, device):
        self.dtype, self.device = dtype, device

    def map(self, shape, memory_format=layout.CHANNELS_LAST, mean=0.3, std=1.0):
        values = (torch.randn(shape, device="cpu") * std + mean).to(self.device, self.dtype)
        return values.contiguous(memory_format=memory_format) if len(shape) == 4 else values

    def filter(self, shape, memory_format=layout.CHANNELS_LAST):
        return self.map(shape, memory_format, 0.0, torch.Size(shape[1:]).numel() ** -0.5)

    def norm(self, channels, suffix="", of_batch=False):
        """{mean, var_or_invstd, weight, bias} of batch norm, far from 0 and 1; weights of 0 and below among them."""
        found = {
            "mean": torch.randn(channels, device="cpu"),
            "var_or_invstd": torch.rand(channels, device="cpu") * 2 + 0.05,
            "weight": torch.randn(channels, device="cpu"),
            "bias": torch.randn(channels, device="cpu"),
        }
        found["weight"][::7] = 0.0
        # Batch statistics are float32; the others may have the dtype of the network.
        to = {n: torch.float32 if of_batch and n in ("mean", "var_or_invstd") else self.dtype for n in found}
        return {n + suffix: t.to(self.device, to[n]) for n, t in found.items()}


def norm_in(t, suffix="", of_batch=False):
    mean, var_or_invstd, weight, bias = (t[n + suffix] for n in ("mean", "var_or_invstd", "weight", "bias"))
    return norm_of(mean, var_or_invstd, weight, bias, None if of_batch else EPS)


def like(x):
    """NaN, in the format of x."""
    return torch.full_like(x, torch.nan)


def sums(x, channels):
    return torch.full((channels,), torch.nan, dtype=wide(x), device=x.device)


def wide(x):
    """The dtype of statistics."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _add_relu(kernel, t):
    kernel(t["x"], t["residual"], out := like(t["x"]))
    return {"out": out}


def _add_relu_backward(kernel, t):
    kernel(t["grad"], t["out"], grad_in := like(t["grad"]))
    return {"grad_in": grad_in}


def _bn_stats(kernel, t, average):
    channels = t["x"].shape[1]
    mean, invstd = sums(t["x"], channels), sums(t["x"], channels)
    running = [t[n].clone() for n in ("running_mean", "running_var")]
    kernel(t["x"], mean, invstd, *running, t["batches"] if average else None, 0.1, EPS)
    return {"mean": mean, "invstd": invstd, "running_mean": running[0], "running_var": running[1]}


def _bn_stats_merge(kernel, t):
    parts = t["parts"]
    found = [sums(parts, parts.shape[1] // 2) for _ in range(4)]
    kernel(parts, *found, 7.0, EPS)
    return dict(zip(("mean", "invstd", "var", "share"), found, strict=True))


def _bn_relu(kernel, t, of_batch, activation):
    kernel(t["x"], Epilogue(norm_in(t, "", of_batch), t["residual"], activation), out := like(t["x"]))
    return {"out": out}


def _bn_add_bn_relu(kernel, t):
    kernel(t["x"], norm_in(t, "", True), t["z"], norm_in(t, "2"), out := like(t["x"]))
    return {"out": out}


def _reduce(kernel, t, masked):
    channels = t["x"].shape[1]
    sum_g, sum_gx, to = sums(t["x"], channels), sums(t["x"], channels), like(t["x"]) if masked else None
    grad2 = t["grad2"] if masked else None
    kernel(t["grad"], t["x"], t["out"], norm_in(t, "", True), sum_g, sum_gx, RELU, grad2, to)
    return {"sum_g": sum_g, "sum_gx": sum_gx} | ({"masked": to} if masked else {})


def _apply(kernel, t, of_batch):
    grad_x, grad_residual = like(t["x"]), like(t["x"])
    more = (t["sum_g"], t["sum_gx"]) if of_batch else (None, None)
    kernel(t["grad"], t["x"], t["out"], norm_in(t, "", of_batch), *more, grad_x, grad_residual, RELU)
    return {"grad_x": grad_x, "grad_residual": grad_residual}


def _passes(maps):
    """An entry of PASSES: `maps(values, shape, memory_format)` for each shape and format."""

    def cases(values, backend, device):
        for shape in MAPS:
            for name, memory_format in FORMATS.items():
                for launch, tensors in maps(values, shape, memory_format):
                    yield Case(f"{'x'.join(map(str, shape))} {name}", tensors, launch)

    return cases


def _sums_of(values, shape, memory_format):
    yield _add_relu, {n: values.map(shape, memory_format) for n in ("x", "residual")}


def _masks_of(values, shape, memory_format):
    yield _add_relu_backward, {"grad": values.map(shape, memory_format), "out": values.map(shape, memory_format).relu()}


def _statistics_of(values, shape, memory_format):
    buffers = values.norm(shape[1])
    tensors = {"x": values.map(shape, memory_format), "batches": torch.tensor(3, device=values.device)}
    tensors |= {"running_mean": buffers["mean"].float(), "running_var": buffers["var_or_invstd"].float()}
    for average in (False, True):
        yield functools.partial(_bn_stats, average=average), tensors


def _norms_of(values, shape, memory_format):
    for of_batch, activation in ((True, RELU), (False, NONE)):
        tensors = {"x": values.map(shape, memory_format), **values.norm(shape[1], "", of_batch)}
        tensors["residual"] = values.map(shape, memory_format) if activation == RELU else None
        yield functools.partial(_bn_relu, of_batch=of_batch, activation=activation), tensors


def _two_norms_of(values, shape, memory_format):
    tensors = {n: values.map(shape, memory_format) for n in ("x", "z")}
    yield _bn_add_bn_relu, tensors | values.norm(shape[1], "", True) | values.norm(shape[1], "2")


def _backward_of(values, shape, memory_format):
    tensors = {n: values.map(shape, memory_format) for n in ("x", "grad", "grad2", "out")}
    tensors["out"].relu_()
    return tensors | values.norm(shape[1], "", True)


def _reductions_of(values, shape, memory_format):
    for masked in (False, True):
        yield functools.partial(_reduce, masked=masked), _backward_of(values, shape, memory_format)


def _gradients_of(values, shape, memory_format):
    for of_batch in (True, False):
        tensors = _backward_of(values, shape, memory_format) | values.norm(shape[1], "", of_batch)
        tensors |= {n: torch.randn(shape[1], device="cpu").to(values.device) for n in ("sum_g", "sum_gx")}
        yield functools.partial(_apply, of_batch=of_batch), tensors


def _merges(values, backend, device):
    if values.dtype == torch.float32:
        parts = torch.rand(3, 2 * 65 + 1, device=values.device) + 0.5
        parts[:, -1] = torch.tensor([7.0, 12.0, 2.0], device=values.device)
        yield Case("3 parts of 65 channels", {"parts": parts}, _bn_stats_merge)


def _pool_linear(kernel, t):
    out = torch.full((len(t["x"]), len(t["weight"])), torch.nan, dtype=t["x"].dtype, device=t["x"].device)
    kernel(t["x"], t["weight"], t["bias"], out)
    return {"out": out}


def _heads(values, backend, device):
    for shape, classes in (((5, 64, 7, 7), 50), ((3, 37, 4, 5), 19), ((2, 64, 1, 1), 16), ((1, 1, 1, 1), 1)):
        tensors = {"x": values.map(shape), "weight": values.filter((classes, shape[1])), "bias": values.map((classes,))}
        yield Case(f"{'x'.join(map(str, shape))} to {classes}", tensors, _pool_linear)


# op -> cases(values, backend, device); convolutions.py has the others
PASSES = {
    "add_relu": _passes(_sums_of),
    "add_relu_backward": _passes(_masks_of),
    "bn_stats": _passes(_statistics_of),
    "bn_stats_merge": _merges,
    "bn_relu": _passes(_norms_of),
    "bn_add_bn_relu": _passes(_two_norms_of),
    "bn_relu_backward_reduce": _passes(_reductions_of),
    "bn_relu_backward_apply": _passes(_gradients_of),
    "pool_linear": _heads,
}
