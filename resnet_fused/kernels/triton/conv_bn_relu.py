"""Evaluation: out = activation(conv(x, weight) * scale + shift [+ residual]), an implicit matrix product with an
epilogue.

scale = bn_weight / sqrt(var + eps) and shift = bn_bias - mean * scale are computed in float32 from the live tensors.
Nothing is folded into the weights: no value becomes outdated, and a large scale cannot overflow fp16 weights.

Rows of the matrix product are output positions (n, p, q), columns are output channels, and the depth is taps x input
channels. Maps are channels_last and weights KRSC, so no kernel takes a stride, and every copy has 16 bytes.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .. import epilogue as activations
from .. import layout
from . import schedule
from .bn_stats import finalise
from .common import INTERPRETED, activate, narrow, scale_shift, widen
from .conv_moments import store_moments


@triton.jit
def _multiply(a, b, acc, PRECISION: tl.constexpr):
    if a.dtype == tl.float8e4nv:
        # The matrix unit keeps about 14 bits of a sum of e4m3 products (Hopper, Ada). At most 128 products, four
        # instructions, are therefore summed before an addition in float32. The addition is written out because only
        # Hopper's lowering follows the limit, and the limit keeps the compiler from folding the addition back (QGMMA or
        # QMMA, then FADD: Triton 3.6 and 3.9, ahead of time).
        tl.static_assert(a.shape[1] <= 128)
        if INTERPRETED:
            return acc + tl.dot(widen(a), widen(b), input_precision="ieee")
        else:
            return acc + tl.dot(a, b, max_num_imprecise_acc=a.shape[1])
    else:
        if INTERPRETED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _positions(start, lane, p, q):
    """(first image, images after it, row, column) of the output positions start + lane.

    Only the scalar division has 64 bits. A 64-bit division per row would cost about 100 instructions. Offsets from the
    first image fit into 32 bits unless schedule.wide_offsets says otherwise.
    """
    pixels = tl.cast(p, tl.int32) * q
    image = start // pixels
    pixel = (start - image * pixels).to(tl.int32) + lane
    ahead = pixel // pixels
    pixel -= ahead * pixels
    row = pixel // q
    return image, ahead, row, pixel - row * q


@triton.jit
def _inside(coordinate, size):
    return coordinate.to(tl.uint32) < tl.cast(size, tl.uint32)  # a negative number becomes huge


@triton.jit
def _finish(
    acc, start, first, base, m, k, channels,
    mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale, out_ptr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The epilogue of the tile acc: positions from start on, columns from first on of a group that has k of the
    `channels` and begins at channel `base`."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    # The epilogue takes 32 channels at a time. In the layout of the matrix product a thread holds every fourth channel,
    # so scale and shift of 128 channels take 64 registers. A whole tile takes 250 registers a thread (one block per
    # SM), halves take 180, quarters 128 (two blocks): fp16, 128 x 128, 8 warps, computed ahead of time for sm_90 with
    # Triton 3.9, no GPU.
    if COLUMNS > 32:
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            _finish(
                halves[i], start, first + i * (COLUMNS // 2), base, m, k, channels,
                mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale, out_ptr, ACTIVATION,
            )  # fmt: skip
    else:
        lane = tl.arange(0, ROWS)
        column = first + tl.arange(0, COLUMNS)
        column_mask = column < k
        column += base
        scale, shift = scale_shift(column, column_mask, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps)
        at = start * channels  # 64 bits; the offsets within a tile have 32
        offsets = (lane * channels)[:, None] + column[None, :]
        mask = (lane < m - start)[:, None] & column_mask[None, :]
        y = acc * scale[None, :] + shift[None, :]
        if residual_ptr is not None:
            added = widen(tl.load(residual_ptr + at + offsets, mask=mask, other=0.0))
            if residual_scale is not None:
                added *= residual_scale
            y += added
        y = activate(y, ACTIVATION)
        tl.store(out_ptr + at + offsets, narrow(y, out_ptr.dtype.element_ty), mask=mask)


# Numbers that differ between layers or batches and decide nothing about the code are not specialised: else an odd last batch
# of an epoch would compile most kernels again.
@triton.jit(
    do_not_specialize=[
        "m", "h", "w", "p", "q", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "iterations",
    ]
)  # fmt: skip
def _conv_kernel(
    x_ptr, weight_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale,
    out_ptr, partial_ptr, moments_ptr, m, c, h, w, k, p, q,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, iterations,
    R: tl.constexpr, S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    OFFSET: tl.constexpr, PRECISION: tl.constexpr, FLAT: tl.constexpr, EVEN: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """One tile of one group: BLOCK_M positions x BLOCK_K channels, `iterations` steps of depth BLOCK_D.

    c, k: channels per group. EVEN: c is a multiple of BLOCK_D. With partial the kernel writes float32 sums [splits, m,
    groups * k] instead of running the epilogue. With moments it also writes statistics of the stored values.
    """
    # Output channels vary fastest: programs that run together then share input tiles in L2. The weights fit into L2.
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
    x_channels = c * tl.num_programs(1)
    out_channels = k * tl.num_programs(1)

    image, ahead, row, col = _positions(start, lane, p, q)
    # A position past the end gets a row above every image, so the loop needs no mask for it.
    top = tl.where(lane_mask, row * stride_h - pad_h, -(2**30))
    left = col * stride_w - pad_w
    x_base = x_ptr + image * h * w * x_channels + group * c
    x_rows = ((ahead.to(OFFSET) * h + top) * w + left) * x_channels
    weight_base = weight_ptr + (group * k).to(tl.int64) * (R * S * c)
    weight_columns = column.to(OFFSET) * (R * S * c)

    depth = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total = tl.cdiv(R * S * c, BLOCK_D) if FLAT else R * S * tl.cdiv(c, BLOCK_D)
    first = split * iterations
    for step in range(first, tl.minimum(first + iterations, total)):
        if FLAT:
            d = step * BLOCK_D + depth
            tap = d // c
            channel = d - tap * c
            r = tap // S
            dh = r * dilation_h
            dw = (tap - r * S) * dilation_w
            inside = _inside(top[:, None] + dh[None, :], h) & _inside(left[:, None] + dw[None, :], w)
            depth_mask = tap < R * S
            x_depth = (dh.to(OFFSET) * w + dw) * x_channels + channel
            weight_depth = d
            x_step = x_base
            weight_step = weight_base
        else:
            # Taps vary fastest: the nine shifted reads of one channel block follow each other, so L2 serves eight of
            # them.
            channel_block = step // (R * S)
            tap = step - channel_block * (R * S)
            channel = channel_block * BLOCK_D
            r = tap // S
            dh = r * dilation_h
            dw = (tap - r * S) * dilation_w
            inside = (_inside(top + dh, h) & _inside(left + dw, w))[:, None]
            depth_mask = depth < (BLOCK_D if EVEN else c - channel)
            # Only scalars change from step to step. The offsets of the tile stay in registers.
            x_depth = depth
            weight_depth = depth
            x_step = x_base + (tl.cast(dh, tl.int64) * w + dw) * x_channels + channel
            weight_step = weight_base + tap * c + channel
        a = tl.load(x_step + (x_rows[:, None] + x_depth[None, :]), mask=inside & depth_mask[None, :], other=0.0)
        b = tl.load(
            weight_step + (weight_depth[:, None] + weight_columns[None, :]),
            mask=depth_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        acc = _multiply(a, b, acc, PRECISION)

    if partial_ptr is not None:
        rows = partial_ptr + (split.to(tl.int64) * m + start + lane) * out_channels + group * k
        tl.store(rows[:, None] + column[None, :], acc, mask=lane_mask[:, None] & column_mask[None, :])
    else:
        _finish(
            acc, start, (tile - block * blocks) * BLOCK_K, group * k, m, k, out_channels,
            mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale, out_ptr, ACTIVATION,
        )  # fmt: skip
        if moments_ptr is not None:
            store_moments(
                acc, lane_mask, tl.minimum(m - start, BLOCK_M).to(tl.float32), block, (tile - block * blocks) * BLOCK_K,
                k, group * k, out_channels, out_ptr.dtype.element_ty, moments_ptr, tl.cdiv(m, BLOCK_M),
            )  # fmt: skip


@triton.jit(do_not_specialize=["m", "splits"])
def _conv_merge_kernel(
    partial_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale, out_ptr,
    m, k, splits, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Adds the splits in their order (no atomics, so every run gives the same bits), then runs the epilogue."""
    blocks = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0)
    block = tile // blocks
    first = (tile - block * blocks) * BLOCK_K
    lane = tl.arange(0, BLOCK_M)
    start = block.to(tl.int64) * BLOCK_M
    column = first + tl.arange(0, BLOCK_K)
    mask = (lane < m - start)[:, None] & (column < k)[None, :]
    at = partial_ptr + (start + lane)[:, None] * k + column[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for split in range(splits):
        acc += tl.load(at + tl.cast(split, tl.int64) * m * k, mask=mask, other=0.0)
    _finish(
        acc, start, first, 0, m, k, k,
        mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual_ptr, residual_scale, out_ptr, ACTIVATION,
    )  # fmt: skip


def _launch(x, weight, norm, out, convolution, activation, statistics=False, config=None):
    """Launches the kernel once; returns (its number of splits, [splits, m, k] sums or None, moments of the tiles or
    None).

    `config`: fields of schedule.Conv that replace the default ones (schedule.conv_as). Raises ValueError for maps that
    are not channels_last: the kernel takes no strides.
    """
    activations.check(activation)
    for name, t in (("x", x), ("out", out), ("residual", norm[5])):
        if t is not None and not layout.is_channels_last(t):
            raise ValueError(f"{name} of shape {tuple(t.shape)} has strides {t.stride()}, but must be channels_last")
    weight = layout.in_format(weight, layout.CHANNELS_LAST)
    n, _, h, w = x.shape
    k, c, r, s = weight.shape
    p, q = out.shape[2:]
    stride, padding, dilation, groups = convolution.geometry
    m = n * p * q
    precision = schedule.fp32_precision() if x.dtype == torch.float32 else "ieee"
    default = schedule.conv(m, k // groups, c, r * s, groups, x.element_size(), precision)
    config = schedule.conv_as(default, c, r * s, config or {})
    wide = schedule.wide_offsets(config.block_m, p * q, x.numel() // n, weight.numel())
    partial = moments = None
    if statistics:
        config = replace(config, splits=1)  # moments need finished sums
        slices = schedule.cdiv(m, config.block_m)
        moments = torch.empty(slices * (3 * k + 1), dtype=torch.float32, device=x.device)
    elif config.splits > 1:
        partial = torch.empty((config.splits, m, k), dtype=torch.float32, device=x.device)
    _conv_kernel[config.grid](
        x, weight, *norm, out, partial, moments,
        m, c, h, w, k // groups, p, q, *stride, *padding, *dilation, config.iterations_per_split,
        R=r, S=s, BLOCK_M=config.block_m, BLOCK_K=config.block_k, BLOCK_D=config.block_d,
        OFFSET=tl.int64 if wide else tl.int32, PRECISION=precision, FLAT=config.flat, EVEN=c % config.block_d == 0,
        ACTIVATION=activation, **config.options,
    )  # fmt: skip
    return config.splits, partial, moments


def conv_bn_relu(x, weight, epilogue, out, convolution, config=None):
    mean, var, _, bn_weight, bn_bias, eps = epilogue.norm
    norm = (mean, var, bn_weight, bn_bias, eps, epilogue.residual, None)
    evaluate(x, weight, norm, out, convolution, epilogue.activation, config)


def evaluate(x, weight, norm, out, convolution, activation, config):
    """Launches the kernel and, where the reduction is split, the second kernel. `norm`: the kernel's arguments from
    mean to residual_scale."""
    with torch.cuda.device_of(x):
        splits, partial, _ = _launch(x, weight, norm, out, convolution, activation, config=config)
        if partial is not None:
            k = weight.shape[0]
            m = out.numel() // k
            merge = schedule.conv_merge(m, k)
            _conv_merge_kernel[merge.grid](
                partial, *norm, out, m, k, splits,
                BLOCK_M=merge.block_m, BLOCK_K=merge.block_k, ACTIVATION=activation, **merge.options,
            )  # fmt: skip


def conv_stats(
    x, weight, out, mean, invstd, running_mean, running_var, num_batches_tracked, convolution, momentum, eps,
    config=None,
):  # fmt: skip
    """out = conv(x, weight), and the results of bn_stats for out without another pass over out."""
    nothing = (None,) * 7  # neither norm nor residual: the epilogue stores the sums
    k = weight.shape[0]
    with torch.cuda.device_of(x):
        *_, moments = _launch(
            x, weight, nothing, out, convolution, activations.NONE, statistics=True, config=config
        )  # fmt: skip
        finalise(moments, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, out.numel() // k)
