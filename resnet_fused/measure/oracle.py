"""What a model is compared with: its own modules in eager torch, and the same in float64."""

import copy

import torch
from torch import nn


def by_modules(model):
    """A copy of `model` whose blocks and stem call their modules one by one: plain eager torch, no fused op."""
    model = copy.deepcopy(model)
    for block in (m for m in model.modules() if hasattr(m, "why_not_fused")):
        block.why_not_fused = lambda x: "module by module was asked for"
    return model


def in_float64(model):
    """A copy of `model` in float64, the oracle: no kernel takes float64, so it runs on torch's own operators."""
    return copy.deepcopy(model).double()


@torch.no_grad()
def with_lively_norms(model, seed=0):
    """Gives every batch norm statistics, weights and biases far from 0 and 1, so that ignoring one shows as an error."""
    generator = torch.Generator().manual_seed(seed)
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            (bn.weight, 0.4, 0.8), (bn.bias, -0.3, 0.3), (bn.running_mean, -0.3, 0.3), (bn.running_var, 0.5, 1.5),
        ):  # fmt: skip
            if tensor is not None:
                tensor.copy_(torch.rand(tensor.shape, generator=generator, device="cpu") * (high - low) + low)
    return model
