"""Triton kernels, one file per op, and their backend. The first launch imports the package triton."""

import functools
import importlib
import importlib.util

import torch

from .. import cuda, env, epilogue
from ..backend import Backend, Kernels
from . import schedule

# The module of each op's launcher. The ops that add a second convolution or a pool to a convolution are composed of
# conv_bn_relu.
MODULES = {
    "add_relu": "add_relu",
    "add_relu_backward": "add_relu",
    "bn_stats": "bn_stats",
    "bn_stats_merge": "bn_stats",
    "bn_relu": "bn_relu",
    "bn_add_bn_relu": "bn_relu",
    "bn_relu_backward_reduce": "bn_relu_backward",
    "bn_relu_backward_apply": "bn_relu_backward",
    "conv_bn_relu": "conv_bn_relu",
    "conv_stats": "conv_bn_relu",
    "conv_bn_relu_pair": None,
    "conv_bn_relu_pool": None,
    "conv_fp8": "conv_fp8",
    "quantise_fp8": "conv_fp8",
}


@functools.cache
def why_not():
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() and not env.TRITON_INTERPRET:
        return "no CUDA device (TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly)"
    return None


@functools.cache
def _launcher(op):
    module = MODULES[op]
    return module and getattr(importlib.import_module(f"{__package__}.{module}"), op)


def configurations(op, convolution):
    if op != "conv_bn_relu":
        return []
    n, k, p, q = convolution.out_shape
    _, c, r, s = convolution.weight
    groups, itemsize = convolution.groups, convolution.dtype.itemsize
    precision = schedule.fp32_precision() if convolution.dtype == torch.float32 else "ieee"
    default = schedule.conv(n * p * q, k // groups, c, r * s, groups, itemsize, precision)
    return schedule.conv_alternatives(default, itemsize)


def _default(op, convolution):
    if (why := cuda.torch_is_faster(convolution)) is not None:
        return False, why
    return True, "no compiled CUDA kernels"


BACKEND = Backend(
    "triton",
    "cuda",
    why_not,
    Kernels(MODULES, _launcher),
    configurations=configurations,
    activations=epilogue.ALL,
    default=_default,
    simulated="cpu" if env.TRITON_INTERPRET else None,
    compiles=True,
)
