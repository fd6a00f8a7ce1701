"""When a live network's convolution on a CPU runs as Winograd's F(2x2,3x3), 2.25 times fewer multiplications.

F(2x2,3x3) has at most 1.5 times the error of torch's most exact direct convolution and less than that of its others
(docs/winograd.md); F(4x4,3x3) has up to four times the former, so only freeze(), which checks the network, uses it.
"""

import functools

import torch

from . import native


@functools.lru_cache(maxsize=4096)
def verdict(dtype, x, weight, stride, padding, dilation, groups):
    """Of shapes `x` and `weight`: (why it cannot run so, why that would be slower than torch); None: it can, it is not."""
    cannot = _why_not(dtype, weight, stride, padding, dilation, groups)
    return cannot, cannot or _why_slower(x, weight, padding)


def _why_not(dtype, weight, stride, padding, dilation, groups):
    if (why := native.why_absent()) is not None:
        return why
    if dtype != torch.float32:
        return f"Winograd is for float32, not {dtype}"
    if weight[2:] != (3, 3) or stride != (1, 1) or dilation != (1, 1) or groups != 1:
        return "Winograd is for 3x3 convolutions of stride 1"
    if padding not in ((0, 0), (1, 1)):
        return "Winograd is for padding 0 or 1"
    return None


def _why_slower(x, weight, padding):
    """The weights are transformed anew in every call. That takes as long as the products of about 48 tiles of 2x2 outputs
    save: 256 channels at 14x14, 49 tiles, ran 1.03 to 1.22 times as fast as direct convolution and pass, 512 channels
    at 7x7, 16 tiles, 0.6 to 0.75 times, 64 channels at 56x56 1.6 to 2.3 times. With 16 channels the transforms of the
    tiles cost what the products save (measured: one thread of a 2-core Intel Xeon, torch 2.13, 2026-11-24).
    """
    tiles = x[0]
    for size, p in zip(x[2:], padding, strict=True):
        tiles *= (size + 2 * p - 1) // 2
    if tiles < 48:
        return f"only {tiles} Winograd tiles share the transformed weights"
    if min(weight[:2]) < 32:
        return f"only {min(weight[:2])} channels share the transformed tiles"
    return None
