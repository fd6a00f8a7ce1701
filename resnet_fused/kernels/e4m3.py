"""e4m3, the 8-bit float of Hopper's and Ada's matrix units: which convolutions use it, its scales, its rounding.

e4m3 has four bits of exponent, three of mantissa and no infinity. Its largest value is 448. Steps are 1/16 to 1/8 of a
value; below 2^-6 they are 2^-9.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import env
from .epilogue import NONE, activate
from .triton import schedule

E4M3 = torch.float8_e4m3fn
NAMES = ("fp8", E4M3)  # names of the format as freeze()'s dtype
LARGEST = 448.0
CHANNELS = 16  # 16 channels are 16 bytes, which is one copy
CAPABILITY = (8, 9)
CHOICES = 2  # launch configurations that freeze() measures besides the default
SLACK = 2.0**-11  # relative to the sizes of all terms: four instructions that keep 14 bits of the largest term each
TILE = ("block_m", "block_k", "num_warps", "num_stages", "splits")  # of a configuration


def asked(dtype):
    return dtype in NAMES


def refusal(weight, groups):
    """Why a convolution with a weight [K, C / groups, R, S] (a shape) stays in bfloat16, or None."""
    if groups != 1:
        return f"the e4m3 kernel takes one group, not {groups}"
    if weight[1] % CHANNELS:
        return f"the e4m3 kernel takes input channels in multiples of {CHANNELS}, not {weight[1]}"
    return None


def why_not(device):
    """Why no e4m3 kernel runs on a torch.device, or None. Triton's interpreter runs them on CPU tensors."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found = None if (major, minor) >= CAPABILITY else f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
    else:
        found = None if device.type == "cpu" and env.TRITON_INTERPRET else f"a {device.type} device"
    return found and f"fp8 needs a CUDA device of compute capability 8.9 or later; this is {found}"


def alternatives(n, p, q, weight):
    """Configurations worth measuring beside the default for a weight [K, C, R, S] and n images of p x q output pixels.
    They are those with eight warps (see schedule.conv)."""
    k, c, r, s = weight
    default = schedule.conv(n * p * q, k, c, r * s, 1, 1, "ieee")
    found = schedule.conv_alternatives(default, 1)
    found = [config for config in found if config["num_warps"] == 8 and config["splits"] == default.splits]
    return [[config[name] for name in TILE] for config in found[:CHOICES]]


def scale_of(largest):
    """The scale for values up to `largest` (a tensor or a number). It is 1 where all values are 0."""
    if isinstance(largest, torch.Tensor):
        return torch.where(largest == 0, 1.0, largest / LARGEST)
    return largest / LARGEST if largest else 1.0


def narrow(y, dtype):
    """y as it is stored: the nearest value of `dtype`, which in e4m3 is at most 448 in size. NaN stays NaN."""
    return (y.clamp(-LARGEST, LARGEST) if dtype == E4M3 else y).to(dtype)


def quantised_weight(weight):
    """(e4m3 weight, [K] float32 scales). The scale of an output channel follows from the channel's own largest
    value."""
    scale = scale_of(weight.flatten(1).abs().amax(1))
    return narrow(weight / scale.view(-1, 1, 1, 1), E4M3), scale


def reference(
    x, weight, scale, shift, residual, residual_scale, stride, padding, dilation, activation, dtype=torch.float64
):
    """The result of conv_fp8 before it is stored, computed in `dtype`."""
    y = F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, dilation)
    y = y * scale.to(dtype).view(1, -1, 1, 1) + shift.to(dtype).view(1, -1, 1, 1)
    y = y if residual is None else y + residual.to(dtype) * residual_scale
    return activate(y, activation)


def magnitude(x, weight, scale, shift, residual, residual_scale, stride, padding, dilation):
    """The sum of the sizes of all terms of each result. Errors of the result's sum are relative to it."""
    sizes = [None if t is None else t.double().abs() for t in (x, weight, scale, shift, residual)]
    return reference(*sizes, residual_scale, stride, padding, dilation, NONE)


def half_step(y, dtype):
    """The largest error of rounding `y` (float64) to `dtype`: half the distance of the neighbouring values of
    `dtype`."""
    bits, smallest = (
        (4, -6) if dtype == E4M3 else (8, -126)
    )  # bits of the significand; exponent below which steps stay equal
    exponent = torch.frexp(y.nan_to_num())[1] - 1
    return torch.exp2((exponent.clamp_min(smallest) - bits).double())


def share(ours, oracle, magnitude, slack):
    """The distance of `ours` from the `oracle` (float64, not rounded), relative to one rounding plus `slack` times
    `magnitude`, the size of the terms of each sum. It is infinite where NaNs differ. A distance of 1 passes."""
    if ours.numel() == 0:
        return 0.0
    if not torch.equal(ours.isnan(), oracle.isnan()):
        return float("inf")
    bound = oracle.clamp(-LARGEST, LARGEST) if ours.dtype == E4M3 else oracle
    allowed = half_step(bound, ours.dtype) + slack * magnitude.nan_to_num()
    return ((ours.double() - bound).nan_to_num().abs() / allowed).max().item()
