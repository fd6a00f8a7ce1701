"""Batch statistics: mean, 1/sqrt(biased variance + eps), and the update of the running statistics.

Two stages add in a fixed order without atomics, so every run gives the same bits. No stage computes E[x^2] - E[x]^2.
"""

import torch
import triton
import triton.language as tl

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


@triton.jit(do_not_specialize=["outer", "position_tiles", "steps", "slices"])
def _bn_stats_kernel(
    x_ptr, partial_ptr, outer, channels, inner, position_tiles, steps, slices,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Reduces one slice of the positions to partial: pivot, mean - pivot and M2, each [slices, channels], and count
    [slices]."""
    part, channel, channel_mask = program_channels(channels, BLOCK_C)
    first = part * steps
    # The pivot is the mean of the first tile. Sums of x - pivot stay exact where |mean| is much larger than the
    # deviation. Lanes with a masked tail have fewer values than others, and a common pivot allows that. A first tile
    # that is an outlier costs a factor of at most steps + 1.
    offset, position_mask, valid = tile_positions(first, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
    offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    pivot = sum_positions(x, CHANNELS_LAST) / valid.to(tl.float32)
    sum_d = tl.zeros_like(x)
    sum_dd = tl.zeros_like(x)
    count = tl.full((), 0, tl.int32)
    for tile in range(first, tl.minimum(first + steps, position_tiles)):
        offset, position_mask, valid = tile_positions(tile, outer, channels, inner, BLOCK_R, CHANNELS_LAST)
        offsets, mask = tile_2d(offset, position_mask, channel, channel_mask, inner, CHANNELS_LAST)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask, x - over_positions(pivot, CHANNELS_LAST), 0.0)
        sum_d += d
        sum_dd += d * d
        count += valid
    n = count.to(tl.float32)
    shift = sum_positions(sum_d, CHANNELS_LAST) / n
    m2 = sum_positions(sum_dd, CHANNELS_LAST) - n * shift * shift
    # pivot and shift are stored apart. Rounding their sum would cost 5e-5 of the variance at |mean| = 1e4 deviations
    # and slices of 100 positions.
    plane = tl.cast(slices, tl.int64) * channels
    to = partial_ptr + tl.cast(part, tl.int64) * channels + channel
    tl.store(to, pivot, mask=channel_mask)
    tl.store(to + plane, shift, mask=channel_mask)
    tl.store(to + 2 * plane, tl.where(m2 < 0.0, 0.0, m2), mask=channel_mask)
    tl.store(partial_ptr + 3 * plane + part, n)


@triton.jit(do_not_specialize=["count", "slices"])
def _bn_finalise_kernel(
    partial_ptr, mean_ptr, invstd_ptr, running_mean_ptr, running_var_ptr, num_batches_tracked_ptr,
    momentum, eps, count, channels, slices, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merges the slices by Chan's formula, then computes what torch's batch_norm computes. No value returns to the
    host."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = channel < channels
    lane = tl.arange(0, BLOCK_S)
    plane = tl.cast(slices, tl.int64) * channels
    count = tl.cast(count, tl.float32)
    # Only differences of means are used. They are computed before anything is rounded.
    pivot = tl.load(partial_ptr + channel, mask=channel_mask, other=0.0)
    weighted = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, slices, BLOCK_S):
        s = start + lane
        mask = (s < slices)[:, None] & channel_mask[None, :]
        at = partial_ptr + s.to(tl.int64)[:, None] * channels + channel[None, :]
        d = tl.load(at, mask=mask, other=0.0) - pivot[None, :] + tl.load(at + plane, mask=mask, other=0.0)
        weighted += tl.load(partial_ptr + 3 * plane + s, mask=s < slices, other=0.0)[:, None] * d
    shift = tl.sum(weighted, axis=0) / count
    squares = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, slices, BLOCK_S):
        s = start + lane
        mask = (s < slices)[:, None] & channel_mask[None, :]
        at = partial_ptr + s.to(tl.int64)[:, None] * channels + channel[None, :]
        d = tl.load(at, mask=mask, other=0.0) - pivot[None, :] + tl.load(at + plane, mask=mask, other=0.0)
        d -= shift[None, :]
        n = tl.load(partial_ptr + 3 * plane + s, mask=s < slices, other=0.0)[:, None]
        squares += tl.load(at + 2 * plane, mask=mask, other=0.0) + n * d * d
    m2 = tl.sum(squares, axis=0)
    mean = pivot + shift
    tl.store(mean_ptr + channel, mean, mask=channel_mask)
    tl.store(invstd_ptr + channel, inverse_std(m2 / count, eps), mask=channel_mask)
    if running_mean_ptr is not None:
        factor = momentum
        if num_batches_tracked_ptr is not None:
            factor = tl.div_rn(1.0, tl.load(num_batches_tracked_ptr).to(tl.float32))
        running_mean = load_channels(running_mean_ptr, channel, channel_mask, 0.0)
        running_var = load_channels(running_var_ptr, channel, channel_mask, 0.0)
        tl.store(running_mean_ptr + channel, (1.0 - factor) * running_mean + factor * mean, mask=channel_mask)
        unbiased = m2 / (count - 1.0)
        tl.store(running_var_ptr + channel, (1.0 - factor) * running_var + factor * unbiased, mask=channel_mask)


@triton.jit
def _over_processes_kernel(
    parts_ptr, mean_ptr, invstd_ptr, var_ptr, share_ptr, own_count, eps, channels, world,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """parts [world, 2 * channels + 1]: means, unbiased variances and number of values per channel. The number may be
    0."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = channel < channels
    row = tl.cast(channels, tl.int64) * 2 + 1
    # Only differences from the first mean that exists are used. They are computed before anything is rounded.
    first = tl.full([BLOCK_S], 0, tl.int64) + world
    for start in range(0, world, BLOCK_S):
        rank = (start + tl.arange(0, BLOCK_S)).to(tl.int64)
        n = tl.load(parts_ptr + rank * row + 2 * channels, mask=rank < world, other=0.0)
        first = tl.where((n > 0.0) & (rank < first), rank, first)
    pivot = tl.load(
        parts_ptr + tl.minimum(tl.min(first, axis=0), world - 1) * row + channel, mask=channel_mask, other=0.0
    )
    count = tl.zeros([BLOCK_S], tl.float32)
    weighted = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, world, BLOCK_S):
        rank = start + tl.arange(0, BLOCK_S)
        at = parts_ptr + rank.to(tl.int64) * row
        n = tl.load(at + 2 * channels, mask=rank < world, other=0.0)
        mask = (n > 0.0)[:, None] & channel_mask[None, :]
        d = tl.load(at[:, None] + channel[None, :], mask=mask, other=0.0) - pivot[None, :]
        count += n
        weighted += tl.where(mask, n[:, None] * d, 0.0)
    total = tl.sum(count, axis=0)
    shift = tl.sum(weighted, axis=0) / total
    squares = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, world, BLOCK_S):
        rank = start + tl.arange(0, BLOCK_S)
        at = parts_ptr + rank.to(tl.int64) * row
        n = tl.load(at + 2 * channels, mask=rank < world, other=0.0)
        mask = (n > 0.0)[:, None] & channel_mask[None, :]
        d = tl.load(at[:, None] + channel[None, :], mask=mask, other=0.0) - pivot[None, :] - shift[None, :]
        # The variance of one value is NaN (0 / 0), so it is not used.
        several = (n > 1.0)[:, None] & channel_mask[None, :]
        unbiased = tl.load(at[:, None] + channels + channel[None, :], mask=several, other=0.0)
        squares += tl.where(mask, unbiased * (n - 1.0)[:, None] + n[:, None] * d * d, 0.0)
    m2 = tl.sum(squares, axis=0)
    tl.store(mean_ptr + channel, pivot + shift, mask=channel_mask)
    tl.store(invstd_ptr + channel, inverse_std(m2 / total, eps), mask=channel_mask)
    tl.store(var_ptr + channel, m2 / (total - 1.0), mask=channel_mask)
    tl.store(share_ptr + channel, tl.zeros([BLOCK_C], tl.float32) + own_count / total, mask=channel_mask)


def bn_stats_merge(parts, mean, invstd, var, share, count, eps):
    world, channels = parts.shape[0], parts.shape[1] // 2
    merge = schedule.merge(channels, min(256, schedule.pow2(world)))  # the number of processes does not change in a run
    with torch.cuda.device_of(parts):
        _over_processes_kernel[merge.grid](
            parts, mean, invstd, var, share, float(count), eps, channels, world,
            BLOCK_S=merge.block_s, BLOCK_C=merge.block_c, **merge.options,
        )  # fmt: skip


def finalise(partial, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, count):
    """The second stage. `partial`: slices of moments that a kernel wrote. `count`: values per channel in all slices
    together."""
    channels = mean.numel()
    slices = partial.numel() // (3 * channels + 1)
    merge = schedule.merge(channels)
    _bn_finalise_kernel[merge.grid](
        partial, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, count, channels, slices,
        BLOCK_S=merge.block_s, BLOCK_C=merge.block_c, **merge.options,
    )  # fmt: skip


def bn_stats(x, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps):
    tiles = schedule.reduction(*outer_channels_inner(x))
    channels, slices = tiles.channels, tiles.slices
    partial = torch.empty(slices * (3 * channels + 1), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _bn_stats_kernel[tiles.grid](
            x, partial, tiles.outer, channels, tiles.inner, tiles.position_tiles, tiles.steps, slices, **blocks(tiles)
        )
        count = x.numel() // channels
        finalise(partial, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, count)
