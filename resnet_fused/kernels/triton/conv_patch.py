"""Convolutions on Hopper with tiles of neighbouring pixels: evaluation, statistics, gradient; see resnet_fused/patch.py.

Operands come by tensor descriptors (TMA), so there is no address, mask or register of theirs in the loop.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..hopper.plane import schedule as plane
from . import patch, schedule
from .bn_stats import finalise
from .common import relu, scale_shift
from .conv_bn_relu import _multiply
from .conv_moments import store_moments


@triton.jit
def _store(
    acc, image, p, q, first, k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out,
    BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """The epilogue of `acc`: channels first + ..., 32 at a time for the registers. What is past an end is not stored."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 32:
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            _store(
                halves[i], image, p, q, first + i * (COLUMNS // 2), k,
                mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out, BN, BP, BQ, RELU,
            )  # fmt: skip
    else:
        channel = first + tl.arange(0, COLUMNS)
        scale, shift = scale_shift(channel, channel < k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps)
        y = acc * scale[None, :] + shift[None, :]
        if residual is not None:
            y += tl.reshape(residual.load([image, p, q, first]), [ROWS, COLUMNS]).to(tl.float32)
        if RELU:
            y = relu(y)
        out.store([image, p, q, first], tl.reshape(y.to(out.dtype), [BN, BP, BQ, COLUMNS]))


@triton.jit
def _moments(
    acc, image, p, q, first, part, n, height, width, k, moments_ptr, slices,
    BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """Statistics of the pixels of a patch that are inside of `n` images of `height` x `width`."""
    lane = tl.arange(0, BN * BP * BQ)
    row = p + lane // BQ % BP
    valid = (image + lane // (BP * BQ) < n) & (row < height) & (q + lane % BQ < width)
    count = tl.minimum(n - image, BN) * tl.minimum(height - p, BP) * tl.minimum(width - q, BQ)
    store_moments(acc, valid, count.to(tl.float32), part, first, k, 0, k, STORED, moments_ptr, slices)


@triton.jit
def _conv_patch_kernel(
    x, weight, residual, out, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, moments_ptr, slices,
    tiles, blocks_h, blocks_w, n, height, width, c, k, x_w, taps, taps_w, top, left, step_h, step_w, before_h, before_w,
    tap, tap_h, tap_w, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, CHANNEL_BLOCKS: tl.constexpr,
    BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """x: a descriptor of [N, H, W, C], with a stride of [N, H / stride, stride, W / stride, stride * C]; weight: of
    [K, R * S, C]; residual, out: of [N, P, Q, K].

    Tap (r, s) of `taps` is row tap + r * tap_h + s * tap_w of the weight, and lies top + r * step_h rows and
    left + s * step_w columns from `before` pixels left of and above output pixel * stride: never negative with a stride.
    """
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        # Output channels fastest, then neighbours: programs that run together read the same lines.
        part = tile // CHANNEL_BLOCKS
        first = (tile - part * CHANNEL_BLOCKS) * BLOCK_K
        row = part // blocks_w
        q = (part - row * blocks_w) * BQ
        image = row // blocks_h
        p = (row - image * blocks_h) * BP
        image *= BN
        acc = tl.zeros([BN * BP * BQ, BLOCK_K], tl.float32)
        for step in range(0, taps * tl.cdiv(c, DEPTH)):
            # Taps fastest: the shifted reads of one channel block follow each other, so L2 serves all but the first.
            block = step // taps
            i = step - block * taps
            r = i // taps_w
            s = i - r * taps_w
            channel = block * DEPTH
            h = top + r * step_h
            w = left + s * step_w
            if STRIDE_H * STRIDE_W == 1:
                a = x.load([image, p + h, q + w, channel])
            else:
                channel_of_row = (w % STRIDE_W) * x_w + channel
                w = q - before_w + w // STRIDE_W
                a = x.load([image, p - before_h + h // STRIDE_H, h % STRIDE_H, w, channel_of_row])
            b = weight.load([first, tap + r * tap_h + s * tap_w, channel])
            a = tl.reshape(a, [BN * BP * BQ, DEPTH])
            acc = _multiply(a, tl.reshape(b, [BLOCK_K, DEPTH]).T, acc, "ieee")
        _store(
            acc, image, p, q, first, k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out,
            BN, BP, BQ, RELU,
        )  # fmt: skip
        if moments_ptr is not None:
            _moments(
                acc, image, p, q, first, part, n, height, width, k, moments_ptr, slices, BN, BP, BQ, out.dtype
            )  # fmt: skip


def _images(t, block):
    """A descriptor of t [N, C, H, W], whose channels are dense, as [N, H, W, C]. The stride of a side of length 1, which may
    be anything, is one that the copy engine takes."""
    n, c, h, w = t.shape
    row = t.stride(3) if w > 1 else c
    line = t.stride(2) if h > 1 else row * w
    return TensorDescriptor(t, [n, h, w, c], [t.stride(0) if n > 1 else line * h, line, row, 1], block)


def _strided(x, stride, block):
    """As `_images`, a row of every `stride` side by side: [N, H / stride, stride, W / stride, stride * C]."""
    n, c, h, w = x.shape
    (down, across), line, pixel = stride, x.stride(2), x.stride(3)
    if h == 1:
        line = pixel * w
    sides = [n, h // down, down, w // across, (across - 1) * pixel + c]
    strides = [x.stride(0) if n > 1 else line * h, down * line, line, across * pixel, 1]
    images, high, wide, depth = block
    return TensorDescriptor(x, sides, strides, [images, high, 1, wide, depth])


def _run(
    x, weight, out, sides, stride, norm=(None,) * 5, residual=None, relu=False, moments=False, config=None
):  # fmt: skip
    """One launch; the moments of its tiles, or None. `sides`: a plane.Side for each side of the filter."""
    n, c, _, w = x.shape
    k, _, r, s = weight.shape
    height, width = out.shape[2:]
    made = patch.launch(n, height, width, k, **(config or {}))
    vertical, horizontal = sides
    # Positions are divided by a stride: from the left of all of them, since Triton divides towards zero.
    before = [schedule.cdiv(max(0, -side.start), by) for side, by in zip(sides, stride, strict=True)]
    pixels, column = [*made.patch, plane.DEPTH], x.stride(3) if w > 1 else c
    given = _strided(x, stride, pixels) if max(stride) > 1 else _images(x, pixels)
    filters = TensorDescriptor(weight, [k, r * s, c], [r * s * c, c, 1], [made.block_k, 1, plane.DEPTH])
    results = [None if t is None else _images(t, [*made.patch, min(32, made.block_k)]) for t in (residual, out)]
    found = torch.empty(made.slices * (3 * k + 1), dtype=torch.float32, device=x.device) if moments else None
    _conv_patch_kernel[(made.programs,)](
        given, filters, *results, *norm, found, made.slices, made.tiles, *made.blocks[1:], n, height, width, c, k, column,
        vertical.count * horizontal.count, max(1, horizontal.count),
        *(side.start + (b * by if max(stride) > 1 else 0) for side, b, by in zip(sides, before, stride, strict=True)),
        vertical.step, horizontal.step, *before,
        vertical.tap * s + horizontal.tap, vertical.every * s, horizontal.every,
        STRIDE_H=stride[0], STRIDE_W=stride[1], CHANNEL_BLOCKS=made.channel_blocks,
        BN=made.patch[0], BP=made.patch[1], BQ=made.patch[2], BLOCK_K=made.block_k, DEPTH=plane.DEPTH, RELU=relu,
        num_warps=made.num_warps, num_stages=made.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return found


def _taken(x, weight, stride, groups):
    if (why := patch.refusal(x.shape, weight.shape, x.dtype, stride, groups)) is not None:
        raise ValueError(why)
    return plane.dense(x), plane.dense(weight)


def _forward_sides(weight, padding, dilation):
    return [plane.Side(r, 0, 1, -pad, d) for r, pad, d in zip(weight.shape[2:], padding, dilation, strict=True)]


def conv_bn_relu(
    x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu, config=None
):  # fmt: skip
    """As kernels/conv_bn_relu.py, for what patch.refusal does not refuse. `config`: fields of patch.launch."""
    x, weight = _taken(x, weight, stride, groups)
    norm = (mean, var, bn_weight, bn_bias, eps)
    with torch.cuda.device_of(x):
        _run(x, weight, out, _forward_sides(weight, padding, dilation), stride, norm, plane.dense(residual), relu,
             config=config)  # fmt: skip


def conv_stats(
    x, weight, out, mean, invstd, running_mean, running_var, num_batches_tracked,
    stride, padding, dilation, groups, momentum, eps, config=None,
):  # fmt: skip
    """As kernels/conv_bn_relu.py, for what patch.refusal does not refuse."""
    x, weight = _taken(x, weight, stride, groups)
    with torch.cuda.device_of(x):
        sides = _forward_sides(weight, padding, dilation)
        moments = _run(x, weight, out, sides, stride, moments=True, config=config)
        count = out.numel() // weight.shape[0]
        finalise(moments, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, count)


def conv_input_grad(grad, weight, out, stride, padding, dilation, groups, config=None):
    """out [N, C, H, W] = the gradient of a convolution's input; grad [N, K, P, Q], weight [K, C, R, S], all channels_last.

    A launch for each remainder of a position by the stride: its taps are those of no other. The weight is brought to
    [C, R, S, K] on every call: a copy of its size. Raises ValueError for what the kernel cannot take.
    """
    turned = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    grad, turned = _taken(grad, turned, (1, 1), groups)  # as patch.gradient_refusal
    geometry = zip(weight.shape[2:], stride, padding, dilation, strict=True)
    rows, columns = (plane.gradient_sides(*side) for side in geometry)
    with torch.cuda.device_of(grad):
        for i, vertical in enumerate(rows[: out.shape[2]]):
            for j, horizontal in enumerate(columns[: out.shape[3]]):
                part = out[:, :, i :: stride[0], j :: stride[1]]
                _run(grad, turned, part, (vertical, horizontal), (1, 1), config=config)
