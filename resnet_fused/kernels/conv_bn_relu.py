"""Evaluation: out = [relu](conv(x, weight) * scale + shift [+ residual]), one implicit GEMM and its epilogue.

scale = bn_weight / sqrt(var + eps), shift = bn_bias - mean * scale, in float32, from the live tensors: nothing is folded
into the weights, so nothing can go stale, and a large scale cannot overflow fp16 weights.

Rows of the GEMM are output positions (n, p, q), columns output channels, the depth is taps x input channels. Tensors come
with their strides; channels_last (and weights likewise) makes every copy a 16-byte one.
"""

import torch
import triton
import triton.language as tl

from .. import launch
from ._common import INTERPRETED, inverse_std, load_channels, relu


@triton.jit
def _multiply(a, b, acc, PRECISION: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _positions(start, lane, p, q):
    """(n, p, q) of output position start + lane. Only the scalar division is 64-bit: per row it would cost 100 instructions."""
    pixels = tl.cast(p, tl.int32) * q
    n = start // pixels
    pixel = (start - n * pixels).to(tl.int32) + lane
    ahead = pixel // pixels
    pixel -= ahead * pixels
    row = pixel // q
    return n + ahead, row, pixel - row * q


@triton.jit
def _finish(
    acc, start, lane, column, mask, k, p, q,
    mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, out_ptr,
    out_n, out_k, out_p, out_q, RELU: tl.constexpr,
):  # fmt: skip
    """The epilogue. `column` counts channels over all groups."""
    column_mask = column < k
    scale = load_channels(bn_weight_ptr, column, column_mask, 1.0)
    scale *= inverse_std(load_channels(var_ptr, column, column_mask, 1.0), eps)
    shift = load_channels(bn_bias_ptr, column, column_mask, 0.0)
    shift -= load_channels(mean_ptr, column, column_mask, 0.0) * scale
    image, row, col = _positions(start, lane, p, q)
    offsets = (image * out_n + row.to(tl.int64) * out_p + col.to(tl.int64) * out_q)[:, None]
    offsets += column.to(tl.int64)[None, :] * out_k
    y = acc * scale[None, :] + shift[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = relu(y)
    tl.store(out_ptr + offsets, y, mask=mask)


@triton.jit
def _conv_kernel(
    x_ptr, weight_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, out_ptr, partial_ptr,
    m, c, h, w, k, p, q,
    x_n, x_c, x_h, x_w, weight_k, weight_c, weight_r, weight_s, out_n, out_k, out_p, out_q,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, iterations,
    R: tl.constexpr, S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, FLAT: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """One tile of one group: BLOCK_M positions x BLOCK_K channels, `iterations` steps of depth BLOCK_D.

    c, k: channels per group. partial given: float32 sums [splits, m, groups * k] instead of the epilogue.
    """
    # Output channels fastest: the programs that run together share input tiles in L2, and the weights fit there anyway.
    blocks = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0)
    group = tl.program_id(1)
    split = tl.program_id(2)
    block = tile // blocks
    lane = tl.arange(0, BLOCK_M)
    start = block.to(tl.int64) * BLOCK_M
    lane_mask = lane < m - start
    column = (tile - block * blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    column_mask = column < k

    image, row, col = _positions(start, lane, p, q)
    top = row * stride_h - pad_h
    left = col * stride_w - pad_w
    x_rows = image * x_n + top.to(tl.int64) * x_h + left.to(tl.int64) * x_w + group.to(tl.int64) * c * x_c
    weight_columns = (group.to(tl.int64) * k + column) * weight_k

    depth = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total = R * S * c if FLAT else R * S * tl.cdiv(c, BLOCK_D)
    if FLAT:
        total = tl.cdiv(total, BLOCK_D)
    first = split * iterations
    for step in range(first, tl.minimum(first + iterations, total)):
        if FLAT:
            d = step * BLOCK_D + depth
            tap = d // c
            channel = d - tap * c
            r = tap // S
            s = tap - r * S
            dh = r * dilation_h
            dw = s * dilation_w
            dh_rows = top[:, None] + dh[None, :]
            dw_cols = left[:, None] + dw[None, :]
            inside = (dh_rows >= 0) & (dh_rows < h) & (dw_cols >= 0) & (dw_cols < w) & lane_mask[:, None]
            depth_mask = tap < R * S
        else:
            # Taps fastest: the nine shifted reads of one channel block follow each other, so L2 serves eight of them.
            channel_block = step // (R * S)
            tap = step - channel_block * (R * S)
            channel = channel_block * BLOCK_D + depth
            r = tap // S
            s = tap - r * S
            dh = r * dilation_h
            dw = s * dilation_w
            inside = ((top + dh >= 0) & (top + dh < h) & (left + dw >= 0) & (left + dw < w) & lane_mask)[:, None]
            depth_mask = channel < c
        x_depth = tl.cast(dh, tl.int64) * x_h + tl.cast(dw, tl.int64) * x_w + channel.to(tl.int64) * x_c
        weight_depth = (
            tl.cast(r, tl.int64) * weight_r + tl.cast(s, tl.int64) * weight_s + channel.to(tl.int64) * weight_c
        )
        a = tl.load(x_ptr + x_rows[:, None] + x_depth[None, :], mask=inside & depth_mask[None, :], other=0.0)
        b = tl.load(
            weight_ptr + weight_depth[:, None] + weight_columns[None, :],
            mask=depth_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        acc = _multiply(a, b, acc, PRECISION)

    mask = lane_mask[:, None] & column_mask[None, :]
    column += group * k
    channels = k * tl.num_programs(1)
    if partial_ptr is not None:
        rows = (split.to(tl.int64) * m + start + lane) * channels
        tl.store(partial_ptr + rows[:, None] + column[None, :], acc, mask=mask)
    else:
        _finish(
            acc, start, lane, column, mask, channels, p, q,
            mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, out_ptr,
            out_n, out_k, out_p, out_q, RELU,
        )  # fmt: skip


@triton.jit
def _conv_merge_kernel(
    partial_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, out_ptr, m, k, p, q, splits,
    out_n, out_k, out_p, out_q, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Sums the splits in their order (no atomics: the same bits on every run), then the epilogue."""
    blocks = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0)
    block = tile // blocks
    lane = tl.arange(0, BLOCK_M)
    start = block.to(tl.int64) * BLOCK_M
    column = (tile - block * blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (lane < m - start)[:, None] & (column < k)[None, :]
    at = partial_ptr + (start + lane)[:, None] * k + column[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for split in range(splits):
        acc += tl.load(at + tl.cast(split, tl.int64) * m * k, mask=mask, other=0.0)
    _finish(
        acc, start, lane, column, mask, k, p, q,
        mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, out_ptr, out_n, out_k, out_p, out_q, RELU,
    )  # fmt: skip


def conv_bn_relu(
    x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu
):  # fmt: skip
    n, _, h, w = x.shape
    k, c, r, s = weight.shape
    p, q = out.shape[2:]
    m = n * p * q
    precision = launch.fp32_precision() if x.dtype == torch.float32 else "ieee"
    config = launch.conv(m, k // groups, c, r * s, groups, x.element_size(), precision)
    norm = (mean, var, bn_weight, bn_bias, eps, residual, out)
    partial = None
    if config.splits > 1:
        partial = torch.empty((config.splits, m, k), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _conv_kernel[config.grid](
            x, weight, *norm, partial,
            m, c, h, w, k // groups, p, q, *x.stride(), *weight.stride(), *out.stride(),
            *stride, *padding, *dilation, config.iterations_per_split,
            R=r, S=s, BLOCK_M=config.block_m, BLOCK_K=config.block_k, BLOCK_D=config.block_d,
            PRECISION=precision, FLAT=config.flat, RELU=relu,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        if partial is not None:
            merge = launch.conv_merge(m, k)
            _conv_merge_kernel[merge.grid](
                partial, *norm, m, k, p, q, config.splits, *out.stride(),
                BLOCK_M=merge.block_m, BLOCK_K=merge.block_k, RELU=relu, num_warps=merge.num_warps,
            )  # fmt: skip
