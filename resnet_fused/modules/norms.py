"""Which modules are a batch norm over [N, C, H, W] that a fused op can compute, and what else these modules do.

Three are: torch's nn.BatchNorm2d, torchvision's FrozenBatchNorm2d, and timm's BatchNormAct2d, which has an activation inside.
The last two are looked up only where their package is loaded already, so neither package is needed, and another class of
the same name is not mistaken for one of them.
"""

import sys

import torch
from torch import nn

from .torchs_own import keeps_forward


def _loaded(module, name):
    return getattr(sys.modules.get(module), name, None)


def is_frozen(bn):
    """Whether `bn` is torchvision's FrozenBatchNorm2d: buffers only, always normalised by the running statistics."""
    return type(bn) is _loaded("torchvision.ops.misc", "FrozenBatchNorm2d")


def with_activation(bn):
    """Whether `bn` is timm's BatchNormAct2d: torch's batch norm, then its children `drop` and `act`."""
    return type(bn) is _loaded("timm.layers.norm_act", "BatchNormAct2d")


def relu_inside(bn):
    """Whether `bn` applies a ReLU itself."""
    return with_activation(bn) and type(bn.act) is nn.ReLU


def tensors_of(bn):
    """(weight, bias, running mean, running variance) of an nn.BatchNorm2d with parameters of its own (`has_parameters`).
    Attributes of modules ask the class first, 0.5 us each, so the dictionaries are read."""
    parameters, buffers = bn._parameters, bn._buffers
    if "running_mean" not in buffers or "running_var" not in buffers:  # plain attributes may have taken their place
        return parameters["weight"], parameters["bias"], bn.running_mean, bn.running_var
    return parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]


def has_parameters(bn):
    """Whether the weight and the bias of `bn` are parameters, not computed. torch.compile of torch 2.11 compares no sets."""
    return "weight" in bn._parameters and "bias" in bn._parameters


def why_not_norm(bn, relu=False):
    """Why `bn` cannot be part of a fused op, or None. `relu`: the op applies the ReLU inside of `bn`."""
    if type(bn) is not nn.BatchNorm2d and is_frozen(bn):
        return None if keeps_forward(type(bn)) else "has a class whose forward was replaced"
    if type(bn) is not nn.BatchNorm2d and with_activation(bn):
        if not keeps_forward(type(bn)):
            return "has a class whose forward was replaced"
        if type(bn.drop) is not nn.Identity:
            return f"drops by {type(bn.drop).__name__}"
        if type(bn.act) is not nn.Identity and not (relu and type(bn.act) is nn.ReLU):
            return f"has an activation of its own, {type(bn.act).__name__}"
    elif type(bn) is not nn.BatchNorm2d:
        return f"is a {type(bn).__name__}, not exactly nn.BatchNorm2d"
    if not has_parameters(bn):
        return "has parameters that are computed (pruned or parametrized)"
    return None


def why_not_here(bn, x):
    """Why `bn` cannot be part of a fused op on the output of a convolution of `x`, or None.

    FrozenBatchNorm2d multiplies by its buffers in their own dtype, so that float32 buffers make float32 of half activations.
    """
    if (
        type(bn) is not nn.BatchNorm2d
        and is_frozen(bn)
        and (x.dtype != bn.weight.dtype or torch.is_autocast_enabled(x.device.type))
    ):
        return f"is a FrozenBatchNorm2d in {bn.weight.dtype}, which changes the dtype of half activations"
    parameters, buffers = bn._parameters, bn._buffers
    for t in (*parameters.values(), buffers.get("running_mean"), buffers.get("running_var")):
        if t is not None and not t.is_contiguous():
            return f"has values in strides of {t.stride(0)}"
    return None


def frozen_statistics(bn):
    """The keyword arguments of the ops for a FrozenBatchNorm2d."""
    return {
        "running_mean": bn.running_mean, "running_var": bn.running_var, "training": False, "momentum": 0.0,
        "num_batches_tracked": None, "eps": bn.eps,
    }  # fmt: skip
