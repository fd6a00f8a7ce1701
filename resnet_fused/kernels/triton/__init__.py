"""Triton kernels, one file per op, and their backend. The first launch imports the package triton."""

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from .. import cuda, env, epilogue, gpu
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


@gpu.per_device
def why_not(device):
    """Why Triton's kernels cannot run on a torch.device, or None."""
    package = importlib.util.find_spec("triton")
    if package is None:
        return "the package triton is not installed"
    if env.TRITON_INTERPRET:
        return None
    if (why := gpu.why_no_device(device)) is not None:
        return f"{why} (TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly)"
    return _why_no_compiler(Path(package.origin).parent)


def _why_no_compiler(package):
    """Why Triton cannot compile here, or None. It compiles its launchers in C and assembles its kernels by ptxas."""
    compilers = [env.CC] if env.CC else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"Triton needs a C compiler, found none of {', '.join(compilers)} (CC names another)"
    scheme = sysconfig.get_default_scheme()  # posix_local is Debian's: Triton includes from posix_prefix then
    include = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    if not Path(include, "Python.h").is_file():
        return f"Triton needs Python.h, {include} has none (python3-dev installs it)"
    ptxas = env.PTXAS or package / "backends/nvidia/bin/ptxas"
    if not os.access(ptxas, os.X_OK):
        return f"Triton needs ptxas, {ptxas} is no program (TRITON_PTXAS_PATH names another)"
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
    proves=True,
)
