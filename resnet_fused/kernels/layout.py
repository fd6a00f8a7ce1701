"""Memory formats: the two layouts that kernels take, and copies of other tensors in one of these layouts."""

import torch

CHANNELS_LAST = torch.channels_last
CONTIGUOUS = torch.contiguous_format


def format_of(t):
    """channels_last, contiguous_format, or None where `t` has gaps, overlaps or another order of dimensions.

    A tensor with both formats (one channel, or one pixel) counts as contiguous.
    """
    if t.is_contiguous():
        return CONTIGUOUS
    if t.dim() == 4 and t.is_contiguous(memory_format=CHANNELS_LAST):
        return CHANNELS_LAST
    return None


def is_channels_last(t):
    """Whether the channels of `t` [N, C, H, W] are dense and innermost. `t` may be contiguous as well."""
    return t.dim() == 4 and t.is_contiguous(memory_format=CHANNELS_LAST)


def nearest_format(t):
    """The format that torch's own operators would choose for a result computed from `t`, whatever the strides of `t`
    are."""
    return format_of(t) or format_of(torch.empty_like(t, device="meta")) or CONTIGUOUS


def has_strides_of_channels_last(t):
    """Whether `t` [N, C, H, W] is channels_last by its strides, which are 1 and C for channel and column. For a tensor
    with both formats torch's operators look at these strides."""
    return is_channels_last(t) and t.stride(1) == 1 and t.stride(3) == t.shape[1]


def with_strides_of_channels_last(t):
    """`t` [N, C, H, W] in channels_last, also by its strides; without a copy where `t` has this format already."""
    t = in_format(t, CHANNELS_LAST)
    if has_strides_of_channels_last(t):
        return t
    _, c, h, w = t.shape
    return t.as_strided(t.shape, (c * h * w, 1, c * w, c))


def result_format(x, weight):
    """The format of the result of torch's convolution: channels_last if the input or the weight is."""
    if nearest_format(x) is CHANNELS_LAST or nearest_format(weight) is CHANNELS_LAST:
        return CHANNELS_LAST
    # One channel, or one pixel: the input has both formats, and its strides decide.
    return CHANNELS_LAST if x.dim() == 4 and has_strides_of_channels_last(x) else CONTIGUOUS


def gives_channels_last(x, weight, shape):
    """Whether the result of a convolution of `x`, a tensor of `shape` in result_format, is channels_last. A result of one
    channel, or of one pixel, always is."""
    return shape[1] == 1 or shape[2] * shape[3] == 1 or result_format(x, weight) is CHANNELS_LAST


def lowered(weight, dtype, x):
    """The weight of a convolution of `x` in another dtype. On a GPU the weight also gets the layout of the result, which
    the kernels read: one launch does both."""
    if x.device.type == "cuda" and result_format(x, weight) is CHANNELS_LAST:
        return weight.to(dtype, memory_format=CHANNELS_LAST)
    return weight.to(dtype)


def as_result_of(out, x):
    """`out`, computed from a copy of `x` in a kernel's layout, in the strides that torch's operators would give the
    result."""
    return out if format_of(x) is not None else torch.empty_like(x).copy_(out)


def in_format(t, memory_format):
    """`t` itself where `t` already has `memory_format`, else a dense copy."""
    return None if t is None else t.contiguous(memory_format=memory_format)
