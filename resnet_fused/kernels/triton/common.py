"""Functions that several kernels share: the activation, e4m3, per-channel parameters, the position of a tile."""

import triton
import triton.language as tl

# The interpreter's tl.dot multiplies the bit patterns of bf16, and its conversion from float32 to bf16 truncates
# instead of rounding to nearest. Kernels therefore widen dot operands when interpreted. bf16 results are meaningful on
# a GPU only.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """ACTIVATION is 0 (none) or 1 (ReLU), as in kernels/epilogue.py. `epilogue.check` refuses other numbers before a
    launch."""
    if ACTIVATION == 1:
        # tl.maximum would turn NaN into 0, and -0.0 into 0.0.
        return tl.where(y < 0.0, 0.0, y)
    else:
        return y


@triton.jit
def widen(t):
    """A tensor of any dtype in float32. The interpreter reads the NaN of e4m3 as 480, so interpreted kernels convert
    the bits: e4m3 is a float16 divided by 256."""
    if INTERPRETED and t.dtype == tl.float8e4nv:
        bits = t.to(tl.uint8, bitcast=True)
        magnitude = ((bits & 127).to(tl.uint16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        magnitude = tl.where((bits & 127) == 127, float("nan"), magnitude)
        return tl.where(bits > 127, -magnitude, magnitude)
    else:
        return t.to(tl.float32)


@triton.jit
def narrow(y, TO: tl.constexpr):
    """float32 as it is stored in TO. e4m3 has no infinity: values above 448 become 448, and NaN stays NaN.

    The interpreter rounds to e4m3 half away from zero and loses carries, and it truncates bfloat16. Interpreted kernels
    round the bits to nearest, ties to even.
    """
    if TO == tl.float8e4nv:  # noqa: SIM300
        y = tl.where(y > 448.0, 448.0, tl.where(y < -448.0, -448.0, y))
        if INTERPRETED:
            magnitude = tl.abs(y)
            bits = magnitude.to(tl.uint32, bitcast=True)
            normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
            # e4m3's smallest step, 2^-9, is the unit in the last place of 2^14: the addition rounds.
            small = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
            code = tl.where(magnitude < 0.015625, small, tl.where(y == y, normal, 127)).to(tl.uint8)
            sign = ((y.to(tl.uint32, bitcast=True) >> 31) << 7).to(tl.uint8)
            return (code | sign).to(tl.float8e4nv, bitcast=True)
        else:
            return y.to(TO)
    elif INTERPRETED and tl.bfloat16 == TO:
        bits = y.to(tl.uint32, bitcast=True)
        return tl.where(y == y, ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True), y)
    else:
        return y


@triton.jit
def load_channels(ptr, channel, mask, default: tl.constexpr):
    """A parameter of any dtype as float32. A parameter that is None is the constant `default`."""
    if ptr is None:
        return tl.full(channel.shape, default, tl.float32)
    else:
        return tl.load(ptr + channel, mask=mask, other=default).to(tl.float32)


@triton.jit
def inverse_std(var_or_invstd, eps):
    """1/std. Where eps is None, var_or_invstd is 1/std, else the variance. The result is correctly rounded, as it is per
    channel."""
    if eps is None:
        return var_or_invstd
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(var_or_invstd + eps))


@triton.jit
def scale_shift(channel, mask, mean_ptr, var_ptr, bn_weight_ptr, bn_bias_ptr, eps):
    """Batch norm of some channels as y = x * scale + shift, float32; without any parameters 1 and 0."""
    scale = load_channels(bn_weight_ptr, channel, mask, 1.0)
    scale *= inverse_std(load_channels(var_ptr, channel, mask, 1.0), eps)
    shift = load_channels(bn_bias_ptr, channel, mask, 0.0)
    return scale, shift - load_channels(mean_ptr, channel, mask, 0.0) * scale


@triton.jit
def tile_positions(tile, outer, channels, inner, BLOCK_R: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets (without the channel), mask and number of valid positions of a tile's BLOCK_R positions; see
    schedule.Tiles."""
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
    valid = tl.minimum(left, BLOCK_R).to(tl.int32)  # the mask compares 32 bits, which takes fewer registers
    return offset, lane < valid, valid


@triton.jit
def tile_2d(positions, position_mask, channel, channel_mask, inner, CHANNELS_LAST: tl.constexpr):
    """Offsets and mask of a tile. Its last axis is the contiguous axis: [R, C] if channels_last, else [C, R]."""
    if CHANNELS_LAST:
        return positions[:, None] + channel[None, :], position_mask[:, None] & channel_mask[None, :]
    else:
        offsets = (channel.to(tl.int64) * inner)[:, None] + positions[None, :]
        return offsets, channel_mask[:, None] & position_mask[None, :]


@triton.jit
def over_positions(channel_values, CHANNELS_LAST: tl.constexpr):
    """Reshapes [C] so that it broadcasts against a tile."""
    if CHANNELS_LAST:
        return channel_values[None, :]
    else:
        return channel_values[:, None]


@triton.jit
def sum_positions(tile, CHANNELS_LAST: tl.constexpr):
    """Sums a tile over its positions to [C]."""
    if CHANNELS_LAST:
        return tl.sum(tile, axis=0)
    else:
        return tl.sum(tile, axis=1)


@triton.jit
def program_channels(channels, BLOCK_C: tl.constexpr):
    """(part, channel, mask) of this program. The channel block varies fastest, as schedule.Tiles says."""
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
    """schedule.Tiles as the compile-time arguments and options of a kernel."""
    return {
        "BLOCK_R": tiles.block_r,
        "BLOCK_C": tiles.block_c,
        "CHANNELS_LAST": tiles.channels_last,
        **tiles.options,
    }
