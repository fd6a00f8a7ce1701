"""out = activation((x - mean) * invstd * weight + bias [+ residual]) per channel. Statistics: bn_stats.py; gradient:
bn_relu_backward.py.

The same kernels take both layouts as [outer, channels, inner]; schedule.Tiles says how.
"""

import torch
import triton
import triton.language as tl

from .. import epilogue as activations
from . import schedule
from .common import (
    activate,
    blocks,
    inverse_std,
    load_channels,
    narrow,
    outer_channels_inner,
    over_positions,
    program_channels,
    tile_2d,
    tile_positions,
)


@triton.jit
def _constants(mean_ptr, var_or_invstd_ptr, weight_ptr, bias_ptr, eps, channel, mask, OF: tl.constexpr):
    """(mean, scale, bias) for values of dtype OF. The scale of a norm as it is born, 0.999995, becomes 1: gather_norm in
    csrc/cpu/base/norm.h says why."""
    mean = load_channels(mean_ptr, channel, mask, 0.0)
    bias = load_channels(bias_ptr, channel, mask, 0.0)
    scale = inverse_std(load_channels(var_or_invstd_ptr, channel, mask, 1.0), eps) * load_channels(
        weight_ptr, channel, mask, 1.0
    )
    if eps is not None and OF != tl.float32:  # noqa: SIM300
        near: tl.constexpr = 2.0**-14 if tl.bfloat16 == OF else 2.0**-17
        rounded = narrow(scale, OF).to(OF).to(tl.float32)
        born = (mean == 0.0) & (bias == 0.0) & (tl.abs(rounded - scale) <= near * tl.abs(rounded))
        scale = tl.where(born, rounded, scale)
    return mean, scale, bias


@triton.jit(do_not_specialize=["outer"])
def _bn_relu_kernel(
    x_ptr, mean_ptr, var_or_invstd_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, eps, outer, channels, inner,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    tile, channel, channel_mask = program_channels(channels, BLOCK_C)
    offset, position_mask, _ = tile_positions(tile, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
    offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
    mean, scale, bias = _constants(
        mean_ptr, var_or_invstd_ptr, weight_ptr, bias_ptr, eps, channel, channel_mask, x_ptr.dtype.element_ty
    )
    # The mean is subtracted first: x * scale + shift would cancel where |mean| is much larger than the deviation.
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    y = (x - over_positions(mean, CHANNELS_LAST)) * over_positions(scale, CHANNELS_LAST)
    y += over_positions(bias, CHANNELS_LAST)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offsets, mask=mask).to(tl.float32)
    tl.store(out_ptr + offsets, activate(y, ACTIVATION), mask=mask)


def bn_relu(x, epilogue, out):
    norm, residual, activation = epilogue
    activations.check(activation)
    tiles = schedule.elementwise(*outer_channels_inner(x))
    with torch.cuda.device_of(x):
        _bn_relu_kernel[tiles.grid](
            x, norm.mean, norm.var_or_invstd, norm.weight, norm.bias, residual, out, norm.eps,
            tiles.outer, tiles.channels, tiles.inner, ACTIVATION=activation, **blocks(tiles),
        )  # fmt: skip


@triton.jit(do_not_specialize=["outer"])
def _bn_add_bn_relu_kernel(
    x_ptr, mean_ptr, var_or_invstd_ptr, weight_ptr, bias_ptr, eps,
    z_ptr, mean_z_ptr, var_or_invstd_z_ptr, weight_z_ptr, bias_z_ptr, eps_z, out_ptr, outer, channels, inner,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """out = relu(bn(x) + bn_z(z)): the end of a residual block whose shortcut is a projection."""
    tile, channel, channel_mask = program_channels(channels, BLOCK_C)
    offset, position_mask, _ = tile_positions(tile, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
    offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
    mean, scale, bias = _constants(
        mean_ptr, var_or_invstd_ptr, weight_ptr, bias_ptr, eps, channel, channel_mask, x_ptr.dtype.element_ty
    )
    mean_z, scale_z, bias_z = _constants(
        mean_z_ptr, var_or_invstd_z_ptr, weight_z_ptr, bias_z_ptr, eps_z, channel, channel_mask, z_ptr.dtype.element_ty
    )
    x = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    z = tl.load(z_ptr + offsets, mask=mask).to(tl.float32)
    y = (x - over_positions(mean, CHANNELS_LAST)) * over_positions(scale, CHANNELS_LAST)
    y += over_positions(bias + bias_z, CHANNELS_LAST)
    y += (z - over_positions(mean_z, CHANNELS_LAST)) * over_positions(scale_z, CHANNELS_LAST)
    tl.store(out_ptr + offsets, activate(y, 1), mask=mask)


def bn_add_bn_relu(x, norm, z, norm_z, out):
    tiles = schedule.elementwise(*outer_channels_inner(x))
    with torch.cuda.device_of(x):
        _bn_add_bn_relu_kernel[tiles.grid](
            x, norm.mean, norm.var_or_invstd, norm.weight, norm.bias, norm.eps,
            z, norm_z.mean, norm_z.var_or_invstd, norm_z.weight, norm_z.bias, norm_z.eps, out,
            tiles.outer, tiles.channels, tiles.inner, **blocks(tiles),
        )  # fmt: skip
