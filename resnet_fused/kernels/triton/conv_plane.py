"""Convolutions on Hopper with tiles of images at one output pixel: evaluation, statistics, gradient; see
resnet_fused/plane.py.

Operands come by tensor descriptors (TMA), so there is no address, mask or register of theirs in the loop: the reason for
this kernel beside conv_bn_relu.py, which gathers them pixel by pixel.
"""

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ..hopper.plane import schedule as plane
from .bn_stats import finalise
from .common import relu, scale_shift
from .conv_bn_relu import _multiply
from .conv_moments import store_moments


@triton.jit
def _store(
    acc, row, pixel_column, first, k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out,
    RELU: tl.constexpr,
):  # fmt: skip
    """The epilogue of `acc`: channels first + ..., 32 at a time, which is what `out` and `residual` move at once."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 32:
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            _store(
                halves[i], row, pixel_column, first + i * (COLUMNS // 2), k,
                mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out, RELU,
            )  # fmt: skip
    else:
        channel = first + tl.arange(0, COLUMNS)
        scale, shift = scale_shift(channel, channel < k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps)
        y = acc * scale[None, :] + shift[None, :]
        if residual is not None:
            y += residual.load([row, pixel_column + first]).to(tl.float32)
        if RELU:
            y = relu(y)
        out.store([row, pixel_column + first], y.to(out.dtype))


@triton.jit
def _conv_plane_kernel(
    x, weight, residual, out, pixels_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps,
    moments_ptr, slices, tiles, image_blocks, n, x_h, x_w, k, step_h, step_w, tap_h, tap_w,
    C: tl.constexpr, S: tl.constexpr, CHANNEL_BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr, FIELDS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """x, weight, residual, out: descriptors of matrices [N, H * W * C], [K, R * S * C], [N, P * Q * K] twice.

    From tap to tap of a pixel it is `step` pixels of x, and `tap` taps of the filter, further.
    """
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        # Output channels fastest, then images: programs that run together read the same taps.
        part = tile // CHANNEL_BLOCKS
        first = (tile - part * CHANNEL_BLOCKS) * BLOCK_K
        row = part // image_blocks
        pixel = pixels_ptr + row * FIELDS
        row = (part - row * image_blocks) * BLOCK_N
        column = tl.load(pixel) * k
        taps = tl.load(pixel + 1)
        width = tl.load(pixel + 2)
        r0 = tl.load(pixel + 3)
        s0 = tl.load(pixel + 4)
        top = tl.load(pixel + 5)
        left = tl.load(pixel + 6)
        acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for step in range(0, taps * (C // DEPTH)):
            tap = step // (C // DEPTH)
            channel = (step - tap * (C // DEPTH)) * DEPTH
            r = tap // width
            s = tap - r * width
            x_column = (top + r * step_h) * x_h + (left + s * step_w) * x_w + channel
            a = x.load([row, x_column])
            b = weight.load([first, ((r0 + r * tap_h) * S + s0 + s * tap_w) * C + channel])
            acc = _multiply(a, b.T, acc, "ieee")
        _store(
            acc, row, column, first, k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out, RELU
        )  # fmt: skip
        if moments_ptr is not None:
            valid = tl.arange(0, BLOCK_N) < n - row
            count = tl.minimum(n - row, BLOCK_N).to(tl.float32)
            store_moments(acc, valid, count, part, first, k, 0, k, out.dtype, moments_ptr, slices)


def _matrix(t, block):
    """A descriptor of t [N, C, H, W], whose channels are dense, as a matrix [N, everything else]."""
    n, c, h, w = t.shape
    width = (h - 1) * t.stride(2) * (h > 1) + (w - 1) * t.stride(3) * (w > 1) + c
    return TensorDescriptor(t, [n, width], [t.stride(0) if n > 1 else width, 1], block)


def _run(
    x, weight, out, pixels, steps, taps=(1, 1), norm=(None,) * 5, residual=None, relu=False, moments=False, config=None
):  # fmt: skip
    """One launch over the `pixels` of a table; the moments of its tiles, or None."""
    n, c = x.shape[:2]
    k, s = weight.shape[0], weight.shape[3]
    made = plane.launch(n, k, len(pixels), **(config or {}))
    operands = [_matrix(x, [made.block_n, plane.DEPTH]), _matrix(weight, [made.block_k, plane.DEPTH])]
    results = [None if t is None else _matrix(t, [made.block_n, 32]) for t in (residual, out)]
    slices = len(pixels) * made.image_blocks
    found = torch.empty(slices * (3 * k + 1), dtype=torch.float32, device=x.device) if moments else None
    _conv_plane_kernel[(made.programs,)](
        *operands, *results, pixels, *norm, found, slices, slices * made.channel_blocks, made.image_blocks, n,
        x.stride(2), x.stride(3), k, *steps, *taps,
        C=c, S=s, CHANNEL_BLOCKS=made.channel_blocks, BLOCK_N=made.block_n, BLOCK_K=made.block_k,
        DEPTH=plane.DEPTH, FIELDS=plane.FIELDS, RELU=relu,
        num_warps=made.num_warps, num_stages=made.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    return found


def _taken(x, weight, out, convolution, groups):
    """(x, weight, pixels) as the kernel takes them. Raises ValueError for what plane.refusal refuses."""
    if (why := plane.refusal(x.shape, weight.shape, x.dtype, groups)) is not None:
        raise ValueError(why)
    geometry = plane.Geometry(*map(tuple, (x.shape[2:], out.shape[2:], weight.shape[2:], *convolution)))
    return plane.dense(x), plane.dense(weight), plane.table_on(geometry, x.device)


def conv_bn_relu(
    x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu, config=None
):  # fmt: skip
    """As kernels/conv_bn_relu.py, for what plane.refusal does not refuse. `config`: fields of plane.launch."""
    x, weight, pixels = _taken(x, weight, out, (stride, padding, dilation), groups)
    norm = (mean, var, bn_weight, bn_bias, eps)
    with torch.cuda.device_of(x):
        _run(x, weight, out, pixels, dilation, norm=norm, residual=plane.dense(residual), relu=relu, config=config)


def conv_stats(
    x, weight, out, mean, invstd, running_mean, running_var, num_batches_tracked,
    stride, padding, dilation, groups, momentum, eps, config=None,
):  # fmt: skip
    """As kernels/conv_bn_relu.py, for what plane.refusal does not refuse."""
    x, weight, pixels = _taken(x, weight, out, (stride, padding, dilation), groups)
    with torch.cuda.device_of(x):
        moments = _run(x, weight, out, pixels, dilation, moments=True, config=config)
        count = out.numel() // weight.shape[0]
        finalise(moments, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, count)


def conv_input_grad(grad, weight, out, stride, padding, dilation, groups, config=None):
    """out [N, C, H, W] = the gradient of a convolution's input; grad [N, K, P, Q], weight [K, C, R, S], all channels_last.

    One launch for all strides. The weight is brought to [C, R, S, K] on every call: a copy of its size. Raises ValueError
    for what plane.refusal refuses, of `grad` beside the turned weight.
    """
    turned = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    if (why := plane.gradient_refusal(grad.shape, turned.shape, grad.dtype, stride, groups)) is not None:
        raise ValueError(why)
    sides = (out.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation)
    pixels = plane.table_on(plane.Geometry(*map(tuple, sides)), grad.device, gradient=True)
    shared = [math.gcd(by, step) for by, step in zip(stride, dilation, strict=True)]
    steps = [-step // both for step, both in zip(dilation, shared, strict=True)]
    taps = [by // both for by, both in zip(stride, shared, strict=True)]
    with torch.cuda.device_of(grad):
        _run(plane.dense(grad), turned, out, pixels, steps, taps, config=config)
