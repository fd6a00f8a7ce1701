"""[relu](conv2d(x, weight) * scale + shift [+ residual * residual_scale]) of e4m3 values, and the conversion to e4m3.

The engine of `freeze(..., dtype="fp8")` runs these two ops. Both write into a tensor of their caller. `scale` and
`shift` hold the batch norm and the scales of x, of every channel of the weight and of the output, so the result is in
units of the output's scale. The ops are for evaluation: channels_last, one group, no gradient.
"""

import torch

from ... import dispatch
from ...kernels import e4m3 as fp8
from ...kernels import layout
from ...kernels.e4m3 import reference
from ...kernels.shapes import convolution_of
from ..define import define

STORED = (fp8.E4M3, torch.bfloat16)


def _check(x, weight, scale, shift, residual, out, convolution):
    if x.dtype != fp8.E4M3 or weight.dtype != fp8.E4M3:
        raise TypeError(f"conv_fp8: x and weight should be float8_e4m3fn, got {x.dtype} and {weight.dtype}")
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"conv_fp8: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if (why := fp8.refusal(weight.shape, 1)) is not None:
        raise ValueError(f"conv_fp8: {why}")
    shape = convolution.out_shape
    for name, t in (("out", out), ("residual", residual)):
        if t is None:
            continue
        if t.shape != shape or t.dtype not in STORED:
            raise ValueError(f"conv_fp8: {name} should be {shape} in e4m3 or bfloat16, got {tuple(t.shape)}, {t.dtype}")
    for name, t in (("scale", scale), ("shift", shift)):
        if t.shape != shape[1:2] or t.dtype != torch.float32:
            raise ValueError(f"conv_fp8: {name} should be [{shape[1]}] in float32, got {tuple(t.shape)}, {t.dtype}")
    for name, t in (("x", x), ("weight", weight), ("out", out), ("residual", residual)):
        if t is not None and t.numel() and not layout.is_channels_last(t):
            raise ValueError(f"conv_fp8: {name} should be channels_last, its strides are {tuple(t.stride())}")


def run(x, weight, scale, shift, residual, residual_scale, out, stride, padding, dilation, activation, tile):
    """`tile`: block_m, block_k, num_warps, num_stages and splits, as measured; empty for the default."""
    convolution = convolution_of(x, weight, stride, padding, dilation, 1)
    _check(x, weight, scale, shift, residual, out, convolution)
    if out.numel() == 0:
        return
    arguments = x, weight, scale, shift, residual, residual_scale
    choice = dispatch.choose_fp8("conv_fp8", x)
    kernel = dispatch.kernel(choice, "conv_fp8")
    if kernel is None:
        y = reference(*arguments, stride, padding, dilation, activation, torch.float32)
        out.copy_(fp8.narrow(y, out.dtype))
        return
    config = dict(zip(fp8.TILE, tile, strict=True)) if tile else None
    kernel(*arguments, activation, out, convolution, config=config)


def run_quantise(x, inverse, out):
    if out.dtype != fp8.E4M3 or out.shape != x.shape or layout.format_of(x) != layout.format_of(out):
        raise ValueError(f"quantise_fp8: out should be as x, dense and in e4m3, got {tuple(out.shape)}, {out.dtype}")
    if out.numel() == 0:
        return
    choice = dispatch.choose_fp8("quantise_fp8", x)
    kernel = dispatch.kernel(choice, "quantise_fp8")
    if kernel is None:
        out.copy_(fp8.narrow(x.float() * inverse, fp8.E4M3))
        return
    kernel(x, inverse, out)


def _fake(*arguments):
    """The fake returns nothing, because the caller owns the results."""


define(
    "conv_fp8(Tensor x, Tensor weight, Tensor scale, Tensor shift, Tensor? residual, float residual_scale, Tensor(a!) out,"
    " int[] stride, int[] padding, int[] dilation, int activation, int[] tile) -> ()",
    run,
    _fake,
)
define("quantise_fp8(Tensor x, float inverse, Tensor(a!) out) -> ()", run_quantise, _fake)
