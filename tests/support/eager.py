"""Eager's answer as a yardstick: torch's own convolutions are not right everywhere."""

import torch


def sound(eager, oracle, in_float32):
    """`eager`; where it is absurd in a half type, `in_float32()` instead, the same on the same values, rounded once.

    On a CPU with a matrix unit torch 2.13 computes garbage, up to 7e18, for a bfloat16 convolution with stride 2 whose
    output is one column wide and several rows high. An error budget of twice that would let any answer pass, and where
    eager is infinite the right answer would fail.
    """
    if eager.dtype not in (torch.float16, torch.bfloat16) or not absurd(eager, oracle):
        return eager
    return in_float32().to(eager.dtype)


def absurd(eager, oracle):
    """Whether `eager` is infinite where the oracle is not, or a tenth of the oracle's norm away from it."""
    counts = oracle.isfinite()
    off = torch.where(counts, eager.double() - oracle, 0.0)
    return not off.norm() <= 0.1 * torch.where(counts, oracle, 0.0).norm()
