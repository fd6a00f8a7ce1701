"""The ops in torch's own operators, for programs that run without this package."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..kernels.epilogue import activate


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """{operator: the same in torch's operators}, for `ExportedProgram.run_decompositions` of a model in evaluation.

    `torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions())` can be loaded without this package,
    by AOTInductor in a C++ program for example. Export inside `torch.no_grad()`: where parameters want gradients a model
    takes the ops of training. ONNX export and `torch.jit.trace` need nothing: they never see the fused
    ops. The ops of training are not in the table.
    """
    library = torch.ops.resnet_fused
    return {
        library.conv_bn_relu.default: _conv_bn_relu,
        library.bn_relu.default: _bn_relu,
        library.add_relu.default: lambda x, residual: torch.relu(x + residual),
    }


def _conv_bn_relu(
    x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, activation
):
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    return _bn_relu(z, mean, var, bn_weight, bn_bias, residual, eps, False, activation)


def _bn_relu(x, mean, var_or_invstd, weight, bias, residual, eps, batch_stats, activation):
    if batch_stats:  # var_or_invstd is 1 / sqrt(var + eps) of this batch
        var_or_invstd, eps = var_or_invstd.square().reciprocal(), 0.0
    # F.batch_norm of torch 2.11 refuses eps = 0.
    out = torch.batch_norm(x, weight, bias, mean, var_or_invstd, False, 0.0, eps, torch.backends.cudnn.enabled)
    if residual is not None:
        out = out + residual  # not `+=` as in the reference, because a decomposition has to be functional
    return activate(out, activation)
