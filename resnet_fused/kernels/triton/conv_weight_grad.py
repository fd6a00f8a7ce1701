"""The gradient of a convolution's weight: dW[k, r, s, c] = sum over pixels of dy[pixel, k] * x[pixel moved by tap (r, s), c].

One matrix product dy^T [K, pixels] @ patches [pixels, R * S * C], whose columns are in the order of a channels_last weight; a
tile may hold parts of several taps, which share its dy. Slices of pixels leave float32 sums, a second kernel adds them in one
order and rounds once: no atomics, the same bits on every run. See resnet_fused/weight_grad.py.
"""

import torch
import triton
import triton.language as tl

from .. import layout
from . import schedule, weight_grad
from .conv_bn_relu import _inside, _multiply, _positions


@triton.jit
def _target(at, columns, c, S: tl.constexpr, out_k, out_c, out_r, out_s):
    """Offsets in the gradient of its values `at`, which count [K, R, S, C]."""
    k = at // columns
    column = at - k * columns
    tap = column // c
    r = tap // S
    return k.to(tl.int64) * out_k + r * out_r + (tap - r * S) * out_s + (column - tap * c) * out_c


@triton.jit
def _store(acc, channel, first, k, columns, partial_ptr):
    """The sums of columns first + ..., 64 at a time: the shared memory through which Triton brings a tile into the order of
    rows would be 131072 bytes for 128 x 256, more than the pipeline takes."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 64:
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            _store(halves[i], channel, first + i * (COLUMNS // 2), k, columns, partial_ptr)
    else:
        column = first + tl.arange(0, COLUMNS)
        at = channel[:, None] * columns + column[None, :]
        tl.store(partial_ptr + at, acc, mask=(channel < k)[:, None] & (column < columns)[None, :])


@triton.jit
def _conv_weight_grad_kernel(
    grad_ptr, x_ptr, partial_ptr, m, steps, k, columns, c, h, w, p, q, x_n, x_c, x_h, x_w,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, step_n, step_p, step_q,
    S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    OFFSET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of one slice. grad: dense [m, k]. partial: float32 [slices, k, columns]."""
    # Tiles fastest: the programs that run together read the same pixels.
    n_blocks = tl.cdiv(columns, BLOCK_N)
    tiles = tl.cdiv(k, BLOCK_K) * n_blocks
    piece = tl.program_id(0) // tiles
    tile = tl.program_id(0) - piece * tiles
    channel = tile // n_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tile % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_mask = channel < k
    column_mask = column < columns

    tap = column // c
    r = tap // S
    s = tap - r * S
    down = r * dilation_h
    # What is past the last column is right of every image: the loop has no mask of its own for it.
    right = tl.where(column_mask, s * dilation_w, 2**30)
    x_columns = down.to(OFFSET) * x_h + (s * dilation_w).to(OFFSET) * x_w + (column - tap * c).to(OFFSET) * x_c

    lane = tl.arange(0, BLOCK_M)
    start = tl.cast(piece, tl.int64) * steps * BLOCK_M
    left = tl.minimum(m - start, steps * BLOCK_M).to(tl.int32)
    image, ahead, row, col = _positions(start, lane, p, q)
    x_base = x_ptr + image * x_n
    grad_step = grad_ptr + start * k
    grad_tile = lane[:, None] * k + channel[None, :]
    acc = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for _ in range(steps):
        lane_mask = lane < left
        # A pixel past the end is above every image.
        top = tl.where(lane_mask, row * stride_h - pad_h, -(2**30))
        side = col * stride_w - pad_w
        inside = _inside(top[:, None] + down[None, :], h) & _inside(side[:, None] + right[None, :], w)
        x_rows = ahead.to(OFFSET) * x_n + top.to(OFFSET) * x_h + side.to(OFFSET) * x_w
        a = tl.load(grad_step + grad_tile, mask=lane_mask[:, None] & channel_mask[None, :], other=0.0)
        b = tl.load(x_base + (x_rows[:, None] + x_columns[None, :]), mask=inside, other=0.0)
        acc = _multiply(tl.trans(a), b, acc, PRECISION)
        # BLOCK_M pixels further are step_n images, step_p rows and step_q columns: additions and carries, no division.
        col += step_q
        carry = col >= q
        col = tl.where(carry, col - q, col)
        row += step_p + carry.to(tl.int32)
        carry = row >= p
        row = tl.where(carry, row - p, row)
        ahead += step_n + carry.to(tl.int32)
        grad_step += tl.cast(BLOCK_M, tl.int64) * k
        left -= BLOCK_M

    slice_ptr = partial_ptr + tl.cast(piece, tl.int64) * k * columns
    _store(acc, channel, tile % n_blocks * BLOCK_N, k, columns, slice_ptr)


@triton.jit
def _conv_weight_grad_merge_kernel(
    partial_ptr, out_ptr, slices, values, columns, c, out_k, out_c, out_r, out_s,
    S: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Slices i, i + BLOCK_S, ... in their order, then the BLOCK_S sums, always in the same way."""
    at = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = at < values
    lane = tl.arange(0, BLOCK_S)
    acc = tl.zeros([BLOCK_S, BLOCK_E], tl.float32)
    for first in range(0, slices, BLOCK_S):
        piece = first + lane
        from_ptr = partial_ptr + piece.to(tl.int64)[:, None] * values + at[None, :]
        acc += tl.load(from_ptr, mask=(piece < slices)[:, None] & mask[None, :], other=0.0)
    tl.store(out_ptr + _target(at, columns, c, S, out_k, out_c, out_r, out_s), tl.sum(acc, axis=0), mask=mask)


def conv_weight_grad(grad, x, weight, out, stride, padding, dilation, groups, config=None):
    """out [K, C, R, S], of any strides = the gradient of a convolution's weight; grad [N, K, P, Q], x [N, C, H, W], of which
    channels_last is fast. Raises ValueError for what weight_grad.refusal refuses. `config`: fields of weight_grad.launch_as."""
    if (why := weight_grad.refusal(x.shape, weight.shape, groups)) is not None:
        raise ValueError(why)
    k, c, r, s = weight.shape
    n, _, p, q = grad.shape
    h, w = x.shape[2:]
    m, columns = n * p * q, r * s * c
    precision = schedule.fp32_precision() if x.dtype == torch.float32 else "ieee"
    made = weight_grad.launch(m, k, columns, c, x.element_size(), precision)
    if config:
        made = weight_grad.launch_as(made, m, k, columns, config)
    images = made.steps * made.block_m // (p * q) + 3
    wide = images * abs(x.stride(0)) >= 2**31
    # One slice too goes through it: with strides of any weight in its epilogue a tile of 128 x 256 spills.
    partial = torch.empty((made.slices, k, columns), dtype=torch.float32, device=x.device)
    further = made.block_m // (p * q), made.block_m // q % p, made.block_m % q
    grad = layout.in_format(grad, layout.CHANNELS_LAST)
    with torch.cuda.device_of(x):
        _conv_weight_grad_kernel[(made.programs,)](
            grad, x, partial, m, made.steps, k, columns, c, h, w, p, q, *x.stride(),
            *stride, *padding, *dilation, *further,
            S=s, BLOCK_M=made.block_m, BLOCK_K=made.block_k, BLOCK_N=made.block_n,
            OFFSET=tl.int64 if wide else tl.int32, PRECISION=precision,
            num_warps=made.num_warps, num_stages=made.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        merge = weight_grad.merge(made.slices, k * columns)
        _conv_weight_grad_merge_kernel[(merge.programs,)](
            partial, out, made.slices, k * columns, columns, c, *out.stride(),
            S=s, BLOCK_S=merge.block_s, BLOCK_E=merge.block_e, num_warps=4,
        )  # fmt: skip
