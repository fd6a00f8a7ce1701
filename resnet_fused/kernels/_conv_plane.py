"""Evaluation on Hopper: conv_bn_relu with tiles of images at one output pixel; see resnet_fused/plane.py.

Operands come by tensor descriptors (TMA), so there is no address, mask or register of theirs in the loop: the reason for
this kernel beside conv_bn_relu.py, which gathers them pixel by pixel.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import plane
from ._common import inverse_std, load_channels, relu
from .conv_bn_relu import _multiply


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
        mask = channel < k
        scale = load_channels(bn_weight_ptr, channel, mask, 1.0)
        scale *= inverse_std(load_channels(var_ptr, channel, mask, 1.0), eps)
        shift = load_channels(bn_bias_ptr, channel, mask, 0.0)
        shift -= load_channels(mean_ptr, channel, mask, 0.0) * scale
        y = acc * scale[None, :] + shift[None, :]
        if residual is not None:
            y += residual.load([row, pixel_column + first]).to(tl.float32)
        if RELU:
            y = relu(y)
        out.store([row, pixel_column + first], y.to(out.dtype))


@triton.jit
def _conv_plane_kernel(
    x, weight, residual, out, pixels_ptr, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps,
    tiles, image_blocks, x_h, x_w, k, dilation_h, dilation_w,
    C: tl.constexpr, S: tl.constexpr, CHANNEL_BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPTH: tl.constexpr, FIELDS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """x, weight, residual, out: descriptors of matrices [N, H * W * C], [K, R * S * C], [N, P * Q * K] twice."""
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
            x_column = (top + r * dilation_h) * x_h + (left + s * dilation_w) * x_w + channel
            a = x.load([row, x_column])
            b = weight.load([first, ((r0 + r) * S + s0 + s) * C + channel])
            acc = _multiply(a, b.T, acc, "ieee")
        _store(
            acc, row, column, first, k, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps, residual, out, RELU
        )  # fmt: skip


def _matrix(t, block):
    """A descriptor of t [N, C, H, W], whose channels are dense, as a matrix [N, everything else]."""
    n, c, h, w = t.shape
    width = (h - 1) * t.stride(2) * (h > 1) + (w - 1) * t.stride(3) * (w > 1) + c
    return TensorDescriptor(t, [n, width], [t.stride(0) if n > 1 else width, 1], block)


def conv_bn_relu(
    x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps, relu, config=None
):  # fmt: skip
    """As kernels/conv_bn_relu.py, for what plane.refusal does not refuse. `config`: fields of plane.launch."""
    if (why := plane.refusal(x.shape, weight.shape, x.dtype, groups)) is not None:
        raise ValueError(why)
    n, c, h, w = x.shape
    k, _, r, s = weight.shape
    sides = ((h, w), tuple(out.shape[2:]), (r, s), tuple(stride), tuple(padding), tuple(dilation))
    pixels = plane.table_on(plane.Geometry(*sides), x.device)
    made = plane.launch(n, k, len(pixels), **(config or {}))
    x, weight = plane.dense(x), plane.dense(weight)
    operands = [_matrix(x, [made.block_n, plane.DEPTH]), _matrix(weight, [made.block_k, plane.DEPTH])]
    results = [None if t is None else _matrix(t, [made.block_n, 32]) for t in (residual, out)]
    with torch.cuda.device_of(x):
        _conv_plane_kernel[(made.programs,)](
            *operands, *results, pixels, mean, var, bn_weight, bn_bias, eps,
            len(pixels) * made.image_blocks * made.channel_blocks, made.image_blocks, x.stride(2), x.stride(3), k, *dilation,
            C=c, S=s, CHANNEL_BLOCKS=made.channel_blocks, BLOCK_N=made.block_n, BLOCK_K=made.block_k,
            DEPTH=plane.DEPTH, FIELDS=plane.FIELDS, RELU=relu,
            num_warps=made.num_warps, num_stages=made.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
