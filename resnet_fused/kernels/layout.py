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


def as_result_of(out, x):
    """`out`, computed from a copy of `x` in a kernel's layout, in the strides that torch's operators would give the
    result."""
    return out if format_of(x) is not None else torch.empty_like(x).copy_(out)


def in_format(t, memory_format):
    """`t` itself where `t` already has `memory_format`, else a dense copy."""
    return None if t is None else t.contiguous(memory_format=memory_format)
