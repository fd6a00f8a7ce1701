"""Curated shapes with ids: the layers of a ResNet in small, and the nasty ones."""

import pytest
import torch

# N, C, H, W
ACTIVATIONS = [
    pytest.param((2, 64, 7, 7), id="layer4-spatial"),
    pytest.param((3, 65, 5, 3), id="odd-channels"),
    pytest.param((1, 16, 9, 11), id="batch-1"),
    pytest.param((4, 100, 1, 1), id="one-pixel"),
    pytest.param((5, 1, 6, 6), id="one-channel"),
    pytest.param((3, 1030, 2, 2), id="more-than-1024-channels"),
]

# x, weight, and the convolution's arguments
CONVOLUTIONS = [
    pytest.param((2, 16, 7, 7), (24, 16, 3, 3), {"padding": 1}, id="3x3"),
    pytest.param((2, 16, 8, 7), (32, 16, 3, 3), {"stride": 2, "padding": 1}, id="3x3-stride-2"),
    pytest.param((2, 16, 7, 8), (32, 16, 1, 1), {"stride": 2}, id="1x1-stride-2"),
    pytest.param((1, 3, 20, 18), (16, 3, 7, 7), {"stride": 2, "padding": 3}, id="stem"),
    pytest.param((2, 13, 6, 5), (10, 13, 3, 3), {"padding": 1}, id="odd-channels"),
    pytest.param((1, 8, 9, 9), (8, 8, 3, 3), {"padding": 2, "dilation": 2}, id="dilation-2"),
    pytest.param((2, 16, 6, 6), (32, 8, 3, 3), {"padding": 1, "groups": 2}, id="two-groups"),
    pytest.param((1, 8, 4, 4), (8, 8, 3, 2), {"stride": (1, 2), "padding": (0, 1)}, id="no-square"),
]

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16"),
]
FORMATS = [
    pytest.param(torch.channels_last, id="nhwc"),
    pytest.param(torch.contiguous_format, id="nchw"),
]


def activation(shape, dtype=torch.float32, memory_format=torch.channels_last, device="cpu", mean=0.3, std=1.0):
    """Random normal values, rounded to `dtype`."""
    t = torch.randn(shape, dtype=torch.float64) * std + mean
    return t.to(device, dtype).contiguous(memory_format=memory_format)


def channels(count, device="cpu", dtype=torch.float32):
    """(weight, bias, running_mean, running_var) that are far from 1, 0, 0, 1: negative and zero weights included."""
    weight = torch.randn(count, dtype=torch.float64)
    weight[::7] = 0.0
    bias = torch.randn(count, dtype=torch.float64)
    mean = torch.randn(count, dtype=torch.float64)
    var = torch.rand(count, dtype=torch.float64) * 2 + 0.05
    return tuple(t.to(device, dtype) for t in (weight, bias, mean, var))


def shifted(t):
    """The same values one element further into a buffer: they begin at no multiple of 16 bytes."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].as_strided(t.shape, t.stride()).copy_(t)
