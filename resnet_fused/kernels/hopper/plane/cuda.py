"""The launchers of the plane convolution in CUDA (csrc/cuda/hopper/plane/plane.cuh), and its lists of products, kept
per shape.

The library makes each list (csrc/cuda/hopper/plane/plan.h). The list lies in device memory, where the kernel reads it.
"""

import functools

import torch

from ... import cuda, library
from ...backend import Backend, Kernels
from . import schedule

DEFAULT = {"places": 4, "cluster": 1}


def table(library, geometry, gradient=False, places=4):
    """The list of a schedule.Geometry as int32 on the CPU. `gradient`: the list for the gradient of the convolution's
    input."""
    sides = (geometry.size, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    found = torch.empty(0, dtype=torch.int32, device="cpu")
    found = torch.empty(library.conv_plane_table(found, *sides, gradient, places), dtype=torch.int32, device="cpu")
    library.conv_plane_table(found, *sides, gradient, places)
    return found


@functools.cache  # entries are never freed: a CUDA graph may still read them
def table_on(library, geometry, gradient, places, device):
    """`table` on a device. Raises RuntimeError while a CUDA graph is captured, because a graph cannot hold the copy."""
    schedule.refuse_capture(device)
    return table(library, geometry, gradient, places).to(device)


def conv_bn_relu(library, x, weight, epilogue, out, convolution, config=None):
    """Signature as in kernels/cuda.py. `config`: `places`, the output pixels of a tile, 4 or 2; `cluster`, the blocks
    that load their weights together: 1, or 2 with more than 64 images. Raises ValueError where `schedule.refusal`
    refuses, and RuntimeError where table_on does."""
    check("conv_bn_relu", convolution)
    config = DEFAULT | (config or {})
    products = _products(library, convolution.x, convolution.out_shape, convolution, False, config, x.device)
    x, weight, residual = map(schedule.dense, (x, nhwc(weight), epilogue.residual))
    mean, var, _, bn_weight, bn_bias, eps = epilogue.norm
    library.conv_plane(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, products, *convolution.geometry, eps,
        epilogue.activation, config["places"], config["cluster"],
    )  # fmt: skip


def conv_input_grad(library, grad, weight, out, convolution, config=None):
    """out [N, C, H, W] = the gradient of a convolution's input; grad [N, K, P, Q], weight [K, C, R, S], all
    channels_last.

    Every call copies the weight to [C, R, S, K]. Raises ValueError where the kernel cannot run, and RuntimeError where
    table_on does.
    """
    check("conv_input_grad", convolution)
    config = DEFAULT | (config or {})
    products = _products(library, out.shape, convolution.x, convolution, True, config, grad.device)
    library.conv_plane_gradient(
        schedule.dense(grad), nhwc(weight.transpose(0, 1)), out, products, *convolution.geometry[:3], config["places"],
        config["cluster"],
    )  # fmt: skip


def check(op, convolution):
    """Raises ValueError where the kernel cannot run."""
    if (why := schedule.refusal(op, convolution)) is not None:
        raise ValueError(why)


def nhwc(weight):
    return weight.contiguous(memory_format=torch.channels_last)


def _products(library, size, out, convolution, gradient, config, device):
    """The list for a convolution from a map of shape `size` to a map of shape `out`."""
    sides = (size[2:], out[2:], convolution.weight[2:], *convolution.geometry[:3])
    return table_on(library, schedule.Geometry(*map(tuple, sides)), gradient, config["places"], device)


def kernels(namespace):
    """{op: launcher} by the ops of the library that `namespace()` returns."""
    ops = {"conv_bn_relu": conv_bn_relu, "conv_input_grad": conv_input_grad}
    return Kernels(ops, lambda op: functools.partial(ops[op], namespace()))


BACKEND = Backend(
    "cuda_plane",
    "cuda",
    schedule.why_not,
    kernels(library.namespace),
    schedule.refusal,
    schedule.suits,
    schedule.configurations,
    otherwise=cuda.BACKEND.name,
    clusters=("conv_bn_relu", "conv_input_grad"),
    proves=True,
)
