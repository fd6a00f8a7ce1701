"""relu(x + residual): the end of every BasicBlock.

The backward saves the output alone, which is the mask of the ReLU.
"""

import torch

from .. import dispatch
from ..kernels import layout
from .define import LIB, adds, by_torch, call, check, check_residual, define, why_not


def reference(x, residual):
    return torch.relu(x + residual)


def reference_backward(grad, out):
    return torch.ops.aten.threshold_backward(grad, out, 0)  # a NaN in out lets the gradient pass, as in eager


def _run(x, residual):
    memory_format = layout.nearest_format(x)
    dense, residual = layout.in_format(x, memory_format), layout.in_format(residual, memory_format)
    choice = dispatch.choose("add_relu", dense, residual)
    out = torch.empty_like(dense)
    dispatch.kernel(choice, "add_relu")(dense, residual, out)
    return layout.as_result_of(out, x)


def _run_backward(grad, out):
    memory_format = layout.nearest_format(out)
    # Autograd may hand over a gradient in any layout.
    grad, dense = layout.in_format(grad, memory_format), layout.in_format(out, memory_format)
    choice = dispatch.choose("add_relu_backward", grad, dense)
    grad_in = torch.empty_like(dense)
    dispatch.kernel(choice, "add_relu_backward")(grad, dense, grad_in)
    return layout.as_result_of(grad_in, out)


def _fake(x, residual):
    torch._check(
        x.shape == residual.shape, lambda: f"add_relu: x {tuple(x.shape)} but residual {tuple(residual.shape)}"
    )
    torch._check(x.dtype == residual.dtype, lambda: f"add_relu: x {x.dtype} but residual {residual.dtype}")
    return torch.empty_like(x)  # empty_like keeps channels_last; new_empty would not


define("add_relu(Tensor x, Tensor residual) -> Tensor", _run, _fake)
define("add_relu_backward(Tensor grad, Tensor out) -> Tensor", _run_backward, lambda grad, out: torch.empty_like(out))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output)


def _backward(ctx, grad):
    (out,) = ctx.saved_tensors
    g = (reference_backward if by_torch(grad) else torch.ops.resnet_fused.add_relu_backward)(grad, out)
    return g if ctx.needs_input_grad[0] else None, g if ctx.needs_input_grad[1] else None


torch.library.register_autograd("resnet_fused::add_relu", _backward, setup_context=_setup, lib=LIB)


def add_relu(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """relu(x + residual) in one pass over memory.

    Args:
        x: any shape; float32, float16 or bfloat16 in any memory format (channels_last is kept).
        residual: a tensor or number that torch could add to `x` in place (`x += residual`): it may broadcast and may have
            another dtype, which sends the call to torch's own operators. It is not modified.

    Returns:
        A new tensor with the shape, dtype and memory format of `x`. One rounding instead of eager's two.

    Raises:
        RuntimeError: as `x += residual` would, when shapes, dtypes or devices do not fit.
        TypeError: x is no tensor; residual is neither a tensor nor a number.
    """
    check("add_relu", x)
    if not adds(residual, x.shape, x) or why_not(x):
        if residual is None:
            raise TypeError("add_relu: residual should be a tensor or a number, got None")
        check_residual("add_relu", x.shape, x, residual)
        return torch.relu(torch.clone(x).add_(residual))
    return call(torch.ops.resnet_fused.add_relu, _run, x, residual)
