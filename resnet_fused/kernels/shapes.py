"""A convolution as shapes and numbers, without tensors. Backends decide by it, and it gives the size of the result."""

from typing import NamedTuple

import torch


def out_size(size, kernel, stride, padding, dilation=1):
    """Output size of a convolution or a pool along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def out_shape(x, weight, stride, padding, dilation):
    """[N, K, P, Q] of conv2d from the shapes of its input and its weight."""
    return (x[0], weight[0], *map(out_size, x[2:], weight[2:], stride, padding, dilation))


def pooled_shape(shape):
    """The shape [N, C, H, W] after the max-pool of a stem: 3x3, stride 2, padding 1."""
    return (*shape[:2], *(out_size(size, 3, 2, 1) for size in shape[2:]))


class Convolution(NamedTuple):
    """conv2d of x [N, C, H, W] by weight [K, C / groups, R, S], two shapes. stride, padding and dilation are pairs.

    For the gradient of an input (`conv_input_grad`) x is the incoming gradient, and weight has its channels exchanged.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def out_shape(self):
        return out_shape(self.x, self.weight, self.stride, self.padding, self.dilation)


def convolution_of(x, weight, stride, padding, dilation, groups):
    """The Convolution of two tensors. Lists become tuples, because a Convolution must be hashable."""
    return Convolution(x.shape, weight.shape, x.dtype, tuple(stride), tuple(padding), tuple(dilation), groups)
