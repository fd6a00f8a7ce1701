"""What the kernels share: ReLU, per-channel parameters, the position of a tile."""

import triton
import triton.language as tl

# The interpreter's tl.dot multiplies the bit patterns of bf16, and its float32 -> bf16 conversion truncates instead of
# rounding to nearest: kernels widen dot operands when interpreted, and bf16 results are meaningful on a GPU only.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def relu(y):
    # not tl.maximum: it turns NaN into 0, and -0.0 into 0.0
    return tl.where(y < 0.0, 0.0, y)


@triton.jit
def load_channels(ptr, channel, mask, default: tl.constexpr):
    """A parameter of any dtype as float32; an absent one (None) is the constant `default`."""
    if ptr is None:
        return tl.full(channel.shape, default, tl.float32)
    else:
        return tl.load(ptr + channel, mask=mask, other=default).to(tl.float32)


@triton.jit
def inverse_std(spread, eps):
    """eps None: spread is 1/std already, else the variance. Correctly rounded, as it is per channel."""
    if eps is None:
        return spread
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(spread + eps))


@triton.jit
def scale_shift(channel, mask, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps):
    """Batch norm of some channels as y = x * scale + shift, float32; without any parameters 1 and 0."""
    scale = load_channels(bn_weight_ptr, channel, mask, 1.0)
    scale *= inverse_std(load_channels(var_ptr, channel, mask, 1.0), eps)
    shift = load_channels(bn_bias_ptr, channel, mask, 0.0)
    return scale, shift - load_channels(mean_ptr, channel, mask, 0.0) * scale


@triton.jit
def tile_positions(tile, outer, channels, inner, BLOCK_R: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets (channel excluded), mask and number of the valid ones of a tile's BLOCK_R positions; see launch.Tiles."""
    lane = tl.arange(0, BLOCK_R)
    if CHANNELS_LAST:
        first = tl.cast(tile, tl.int64) * BLOCK_R
        left = outer - first
        offset = (first + lane) * channels
    else:
        tiles_per_plane = tl.cdiv(inner, BLOCK_R)
        plane = tile // tiles_per_plane
        first = tl.cast(tile - plane * tiles_per_plane, tl.int64) * BLOCK_R
        left = inner - first
        offset = tl.cast(plane, tl.int64) * channels * inner + first + lane
    return offset, lane < left, tl.minimum(left, BLOCK_R).to(tl.int32)


@triton.jit
def tile_2d(positions, position_mask, channel, channel_mask, inner, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask of a tile, its last axis the contiguous one: [R, C] if channels_last, else [C, R]."""
    if CHANNELS_LAST:
        return positions[:, None] + channel[None, :], position_mask[:, None] & channel_mask[None, :]
    else:
        offsets = (channel.to(tl.int64) * inner)[:, None] + positions[None, :]
        return offsets, channel_mask[:, None] & position_mask[None, :]


@triton.jit
def over_positions(channel_values, CHANNELS_LAST: tl.constexpr):
    """[C] -> broadcastable against a tile."""
    if CHANNELS_LAST:
        return channel_values[None, :]
    else:
        return channel_values[:, None]


@triton.jit
def sum_positions(tile, CHANNELS_LAST: tl.constexpr):
    """Tile -> [C]."""
    if CHANNELS_LAST:
        return tl.sum(tile, axis=0)
    else:
        return tl.sum(tile, axis=1)


@triton.jit
def program_channels(channels, BLOCK_C: tl.constexpr):
    """(part, channel, mask) of this program; the channel block runs fastest, as launch.Tiles says."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    part = program // blocks
    channel = (program - part * blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return part, channel, channel < channels


def outer_channels_inner(x):
    """A dense [N, C, *] tensor as [outer, channels, inner]: inner = 1 if channels_last, else the number of pixels."""
    n, c = x.shape[:2]
    pixels = x.numel() // (n * c)
    channels_last = c == 1 or pixels == 1 or not x.is_contiguous()
    return (n * pixels, c, 1) if channels_last else (n, c, pixels)


def blocks(tiles):
    """launch.Tiles as the compile-time arguments and options of a kernel."""
    return {
        "BLOCK_R": tiles.block_r,
        "BLOCK_C": tiles.block_c,
        "CHANNELS_LAST": tiles.channels_last,
        **tiles.options,
    }
