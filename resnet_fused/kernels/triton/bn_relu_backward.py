"""Gradient of bn_relu: g = out <= 0 ? 0 : grad [+ grad2], its per-channel sums, and grad_x.

training: grad_x = weight * invstd * (g - sum_g / count - xhat * sum_gx / count); frozen: grad_x = weight * invstd * g.
"""

import torch
import triton
import triton.language as tl

from .. import epilogue as activations
from . import schedule
from .common import (
    blocks,
    inverse_std,
    load_channels,
    outer_channels_inner,
    over_positions,
    program_channels,
    sum_positions,
    tile_2d,
    tile_positions,
)


@triton.jit
def _masked_grad(grad_ptr, grad2_ptr, out_ptr, offsets, mask):
    """g. Where out_ptr is None there was no ReLU. The mask is `out <= 0`, so a NaN lets the gradient pass, as in
    torch."""
    g = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if grad2_ptr is not None:
        g += tl.load(grad2_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        g = g.to(grad_ptr.dtype.element_ty).to(tl.float32)  # rounded as it is stored and as the next pass reads it
    if out_ptr is not None:
        g = tl.where(tl.load(out_ptr + offsets, mask=mask, other=0.0).to(tl.float32) <= 0.0, 0.0, g)
    return g


@triton.jit(do_not_specialize=["outer", "position_tiles", "steps", "slices"])
def _bn_relu_backward_reduce_kernel(
    grad_ptr, grad2_ptr, x_ptr, out_ptr, mean_ptr, var_or_invstd_ptr, masked_ptr, partial_ptr, eps,
    outer, channels, inner, position_tiles, steps, slices,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Sums over one slice of the positions -> partial [2, slices, channels]. x None: only sum_g. masked = g, where
    wanted."""
    part, channel, channel_mask = program_channels(channels, BLOCK_C)
    if x_ptr is not None:
        mean = load_channels(mean_ptr, channel, channel_mask, 0.0)
    sum_g = tl.zeros([BLOCK_R, BLOCK_C] if CHANNELS_LAST else [BLOCK_C, BLOCK_R], tl.float32)
    sum_gx = tl.zeros_like(sum_g)
    first = part * steps
    for tile in range(first, tl.minimum(first + steps, position_tiles)):
        offset, position_mask, _ = tile_positions(tile, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
        offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
        g = _masked_grad(grad_ptr, grad2_ptr, out_ptr, offsets, mask)
        if masked_ptr is not None:
            tl.store(masked_ptr + offsets, g, mask=mask)
        sum_g += g
        if x_ptr is not None:
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            sum_gx += g * (x - over_positions(mean, CHANNELS_LAST))
    to = partial_ptr + tl.cast(part, tl.int64) * channels + channel
    tl.store(to, sum_positions(sum_g, CHANNELS_LAST), mask=channel_mask)
    if x_ptr is not None:
        invstd = inverse_std(load_channels(var_or_invstd_ptr, channel, channel_mask, 1.0), eps)
        plane = tl.cast(slices, tl.int64) * channels
        tl.store(to + plane, sum_positions(sum_gx, CHANNELS_LAST) * invstd, mask=channel_mask)


@triton.jit(do_not_specialize=["slices"])
def _sum_slices_kernel(partial_ptr, sum_ptr, channels, slices, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = channel < channels
    total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, slices, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = partial_ptr + s.to(tl.int64)[:, None] * channels + channel[None, :]
        total += tl.load(at, mask=(s < slices)[:, None] & channel_mask[None, :], other=0.0)
    tl.store(sum_ptr + channel, tl.sum(total, axis=0), mask=channel_mask)


@triton.jit(do_not_specialize=["count", "outer"])
def _bn_relu_backward_apply_kernel(
    grad_ptr, grad2_ptr, x_ptr, out_ptr, mean_ptr, var_or_invstd_ptr, weight_ptr, sum_g_ptr, sum_gx_ptr, grad_x_ptr,
    grad_residual_ptr, eps, count, outer, channels, inner,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    tile, channel, channel_mask = program_channels(channels, BLOCK_C)
    offset, position_mask, _ = tile_positions(tile, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
    offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
    g = _masked_grad(grad_ptr, grad2_ptr, out_ptr, offsets, mask)
    if grad_residual_ptr is not None:
        tl.store(grad_residual_ptr + offsets, g, mask=mask)
    if grad_x_ptr is not None:
        invstd = inverse_std(load_channels(var_or_invstd_ptr, channel, channel_mask, 1.0), eps)
        scale = invstd * load_channels(weight_ptr, channel, channel_mask, 1.0)
        if sum_g_ptr is not None:
            n = tl.cast(count, tl.float32)
            mean = load_channels(mean_ptr, channel, channel_mask, 0.0)
            mean_g = load_channels(sum_g_ptr, channel, channel_mask, 0.0) / n
            slope = load_channels(sum_gx_ptr, channel, channel_mask, 0.0) / n * invstd
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            xc = x - over_positions(mean, CHANNELS_LAST)
            g -= over_positions(mean_g, CHANNELS_LAST) + xc * over_positions(slope, CHANNELS_LAST)
        tl.store(grad_x_ptr + offsets, g * over_positions(scale, CHANNELS_LAST), mask=mask)


def _mask(out, activation):
    """The tensor of the mask: the output of a ReLU, None without an activation."""
    activations.check(activation, (activations.NONE, activations.RELU))
    return out if activation == activations.RELU else None


def bn_relu_backward_reduce(grad, x, out, norm, sum_g, sum_gx, activation, grad2=None, masked=None):
    mean, var_or_invstd, eps = (None, None, None) if norm is None else (norm.mean, norm.var_or_invstd, norm.eps)
    tiles = schedule.reduction(*outer_channels_inner(grad))
    channels, slices = tiles.channels, tiles.slices
    merge = schedule.merge(channels)
    sums = (sum_g,) if x is None else (sum_g, sum_gx)
    partial = torch.empty((len(sums), slices, channels), dtype=torch.float32, device=grad.device)
    with torch.cuda.device_of(grad):
        _bn_relu_backward_reduce_kernel[tiles.grid](
            grad, grad2, x, _mask(out, activation), mean, var_or_invstd, masked, partial, eps,
            tiles.outer, channels, tiles.inner, tiles.position_tiles, tiles.steps, slices, **blocks(tiles),
        )  # fmt: skip
        for part, total in zip(partial, sums, strict=True):
            _sum_slices_kernel[merge.grid](
                part, total, channels, slices, BLOCK_S=merge.block_s, BLOCK_C=merge.block_c, **merge.options
            )


def bn_relu_backward_apply(grad, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, grad2=None):
    tiles = schedule.elementwise(*outer_channels_inner(grad))
    training = norm.of_batch
    with torch.cuda.device_of(grad):
        _bn_relu_backward_apply_kernel[tiles.grid](
            grad, grad2, x if training else None, _mask(out, activation), norm.mean if training else None, norm.var_or_invstd,
            norm.weight,
            sum_g if training else None, sum_gx if training else None, grad_x, grad_residual,
            norm.eps, grad.numel() // tiles.channels, tiles.outer, tiles.channels, tiles.inner, **blocks(tiles),
        )  # fmt: skip
