"""The plane convolution in CUDA (csrc/cuda/hopper/plane/plane.cuh): its lists of products, kept per shape, and its launcher.

Each list is made by the library (csrc/cuda/hopper/plane/plan.h) and lies in device memory, where the kernel reads it.
"""

import functools

import torch

from . import schedule as plane


def alternatives(images):
    """Arguments of `conv_bn_relu` worth measuring beside its defaults. A cluster needs two groups of 64 images."""
    return [{"places": 2}] + [{"cluster": 2}, {"places": 2, "cluster": 2}] * (images > 64)


def table(library, geometry, gradient=False, places=4):
    """The list of a plane.Geometry as int32 on the CPU. `gradient`: of the gradient of the convolution's input."""
    sides = (geometry.size, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    found = torch.empty(0, dtype=torch.int32)
    found = torch.empty(library.conv_plane_table(found, *sides, gradient, places), dtype=torch.int32)
    library.conv_plane_table(found, *sides, gradient, places)
    return found


@functools.cache  # never given up: a CUDA graph may still read it
def table_on(library, geometry, gradient, places, device):
    """`table` on a device. Raises RuntimeError inside of a CUDA graph's capture, which cannot hold the copy."""
    plane.refuse_capture(device)
    return table(library, geometry, gradient, places).to(device)


def conv_bn_relu(
    library, x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu,
    places=4, cluster=1,
):  # fmt: skip
    """As kernels/conv_bn_relu.py, by the ops of `library`, for what `plane.refusal` does not refuse. `places`: output pixels of
    a tile, 4 or 2; `cluster`: blocks that load their weights together, 1 or, of more than 64 images, 2. Raises ValueError
    for what it refuses, RuntimeError as table_on does."""
    if (why := plane.refusal(x.shape, weight.shape, x.dtype, stride, padding, dilation, groups)) is not None:
        raise ValueError(why)
    sides = (x.shape[2:], out.shape[2:], weight.shape[2:], stride, padding, dilation)
    products = table_on(library, plane.Geometry(*map(tuple, sides)), False, places, x.device)
    x, weight, residual = map(plane.dense, (x, weight, residual))
    library.conv_plane(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, products, stride, padding, dilation, groups, eps, relu,
        places, cluster,
    )  # fmt: skip


def conv_input_grad(library, grad, weight, out, stride, padding, dilation, groups, places=4, cluster=1):
    """out [N, C, H, W] = the gradient of a convolution's input; grad [N, K, P, Q], weight [K, C, R, S], all channels_last.

    The weight is brought to [C, R, S, K] on every call: a copy of its size. Raises ValueError for what the kernel cannot
    take, RuntimeError as table_on does.
    """
    turned = weight.transpose(0, 1)
    if (why := plane.refusal(grad.shape, turned.shape, grad.dtype, stride, padding, dilation, groups)) is not None:
        raise ValueError(why)
    sides = (out.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation)
    products = table_on(library, plane.Geometry(*map(tuple, sides)), True, places, grad.device)
    turned = turned.contiguous(memory_format=torch.channels_last)
    library.conv_plane_gradient(plane.dense(grad), turned, out, products, stride, padding, dilation, places, cluster)
