"""The steps after a convolution or a sum, value by value: batch norm, residual, activation."""

from typing import NamedTuple

import torch

# An activation is a number, because op schemas can hold a number.
NONE, RELU = 0, 1
ACTIVATIONS = ("none", "relu")
ALL = tuple(range(len(ACTIVATIONS)))


class Norm(NamedTuple):
    """Batch norm of [C] channels: by running statistics (mean, var, eps), or by the statistics of a batch (mean,
    invstd). invstd is 1 / sqrt(var + eps); var and eps are then None."""

    mean: torch.Tensor
    var: torch.Tensor | None
    invstd: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float | None

    @property
    def of_batch(self):
        return self.var is None

    @property
    def var_or_invstd(self):
        """var or invstd, whichever is given. Kernels have one argument for both and tell them apart by eps."""
        return self.invstd if self.var is None else self.var


def norm_of(mean, var_or_invstd, weight, bias, eps):
    """The Norm of an op's arguments: `var_or_invstd` is invstd where eps is None, else var."""
    return (
        Norm(mean, None, var_or_invstd, weight, bias, None)
        if eps is None
        else Norm(mean, var_or_invstd, None, weight, bias, eps)
    )


class Epilogue(NamedTuple):
    """activation(norm(z) [+ residual]) for the output z of a convolution."""

    norm: Norm
    residual: torch.Tensor | None = None
    activation: int = RELU


def saves_output(activation):
    """Whether the backward needs the result of an activation. The result of ReLU is its mask, so ReLU's input is not
    kept. Raises ValueError for an activation that has no backward."""
    check(activation, (NONE, RELU), "activation of a gradient")
    return activation == RELU


def activate(y, activation):
    """The activation as torch's own operator."""
    check(activation)
    return torch.relu(y) if activation == RELU else y


def check(activation, able=ALL, what="activation"):
    """Raises ValueError for an activation that a kernel does not have."""
    if activation not in able:
        names = " or ".join(ACTIVATIONS[known] for known in able)
        found = ACTIVATIONS[activation] if 0 <= activation < len(ACTIVATIONS) else activation
        raise ValueError(f"{what} must be {names}, not {found}")
