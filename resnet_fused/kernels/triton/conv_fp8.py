"""Convolutions of e4m3 values: the matrix product of conv_bn_relu.py with e4m3 factors, and the conversion to e4m3.

The sums are promoted to float32 (`_multiply`). The epilogue is one multiplication and one addition per channel: scale
and shift hold the scales of input, weights and output as well as the batch norm.
"""

import torch
import triton
import triton.language as tl

from . import schedule
from .common import narrow, widen
from .conv_bn_relu import evaluate


def conv_fp8(
    x, weight, scale, shift, residual, residual_scale, activation, out, convolution, config=None
):  # fmt: skip
    """out = activation(conv(x, weight) * scale + shift [+ residual * residual_scale]); all tensors are channels_last.

    x, weight: e4m3; scale, shift: [K] float32; residual, out: e4m3 or bfloat16. `config`: as in `schedule.conv_as`.
    """
    norm = (None, None, scale, shift, None, residual, None if residual is None else residual_scale)
    evaluate(x, weight, norm, out, convolution, activation, config)


@triton.jit
def _quantise_kernel(x_ptr, out_ptr, inverse, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = widen(tl.load(x_ptr + at, mask=at < size, other=0.0)) * inverse
    tl.store(out_ptr + at, narrow(y, out_ptr.dtype.element_ty), mask=at < size)


def quantise_fp8(x, inverse, out):
    """out (e4m3) = x * inverse, for two dense tensors of one format."""
    flat = schedule.flat(x.numel(), x.element_size())
    with torch.cuda.device_of(x):
        _quantise_kernel[flat.grid](x, out, inverse, x.numel(), BLOCK=flat.block, **flat.options)
