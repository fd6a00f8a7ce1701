"""out = relu(x + residual) and its gradient, over dense tensors of one layout as flat arrays."""

import torch
import triton
import triton.language as tl

from . import schedule
from .common import activate


@triton.jit
def _add_relu_kernel(x_ptr, residual_ptr, out_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: size may exceed 2**31
    mask = i < size
    y = tl.load(x_ptr + i, mask=mask).to(tl.float32) + tl.load(residual_ptr + i, mask=mask).to(tl.float32)
    tl.store(out_ptr + i, activate(y, 1), mask=mask)


@triton.jit
def _add_relu_backward_kernel(grad_ptr, out_ptr, grad_in_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    grad = tl.load(grad_ptr + i, mask=mask)
    out = tl.load(out_ptr + i, mask=mask).to(tl.float32)
    # `out <= 0` and not `out > 0`: a NaN in out lets the gradient pass, as in torch
    tl.store(grad_in_ptr + i, tl.where(out <= 0.0, 0.0, grad.to(tl.float32)), mask=mask)


def add_relu(x, residual, out):
    config = schedule.flat(x.numel(), x.element_size())
    with torch.cuda.device_of(x):
        _add_relu_kernel[config.grid](x, residual, out, x.numel(), BLOCK=config.block, **config.options)


def add_relu_backward(grad, out, grad_in):
    config = schedule.flat(out.numel(), out.element_size())
    with torch.cuda.device_of(out):
        _add_relu_backward_kernel[config.grid](grad, out, grad_in, out.numel(), BLOCK=config.block, **config.options)
