"""Which convolutions of a live network a CPU runs by kernels of its own, and where they are faster than torch's.

Winograd's F(2x2,3x3), 2.25 times fewer multiplications, with the weights transformed anew in every call. It has at most
1.5 times the error of torch's most exact direct convolution and less than that of its others (docs/winograd.md); F(4x4,3x3)
has up to four times the former, so only freeze(), which checks the network, uses it. And the stem with its pooling.
"""

import functools

import torch

from . import library


@functools.lru_cache(maxsize=4096)
def verdict(op, dtype, x, weight, stride, padding, dilation, groups):
    """(why the kernel for `op` cannot run it, why that would be slower than torch), None: it can, it is not.

    x, weight: shapes; the others as in torch.nn.functional.conv2d.
    """
    if (why := library.why_absent()) is not None:
        return why, why
    if dtype != torch.float32:
        why = f"the CPU's own convolutions are for float32, not {dtype}"
        return why, why
    if op not in ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool"):
        why = f"no kernel of the CPU's own for {op}"
        return why, why
    if op == "conv_bn_relu_pool":
        why = _why_not_stem(weight, stride, padding, dilation, groups)
        return why, why
    cannot = _why_not_winograd(weight, stride, padding, dilation, groups)
    return cannot, cannot or _why_slower(x, weight, padding)


def _why_not_stem(weight, stride, padding, dilation, groups):
    square = weight[2] == weight[3] <= 16 and stride[0] == stride[1] and padding[0] == padding[1] < weight[2]
    # Images have few channels; with more, oneDNN's convolution is faster.
    if square and weight[1] <= 4 and dilation == (1, 1) and groups == 1:
        return None
    return "the stem's kernel is for square filters over at most 4 channels"


def _why_not_winograd(weight, stride, padding, dilation, groups):
    if weight[2:] != (3, 3) or stride != (1, 1) or dilation != (1, 1) or groups != 1:
        return "Winograd is for 3x3 convolutions of stride 1"
    return None if padding in ((0, 0), (1, 1)) else "Winograd is for padding 0 or 1"


def _why_slower(x, weight, padding):
    """The weights are transformed anew in every call, which takes as long as the products of so many tiles of 2x2 outputs
    save. Speed over direct convolution and pass, two threads: 256 channels and 49 tiles 1.12 to 1.39, 512 channels and
    16 tiles 0.83 to 1.01, 48 tiles 0.85, 128 tiles 1.2; 32 to 128 channels and 32 tiles 1.4 to 2. With 16 channels the
    transforms of the tiles cost what the products save (measured: 2-core Intel Xeon, torch 2.13, 2026-11-24).
    """
    tiles, enough = x[0], 32 if weight[0] * weight[1] <= 256 * 256 else 64
    for size, p in zip(x[2:], padding, strict=True):
        tiles *= (size + 2 * p - 1) // 2
    if tiles < enough:
        return f"only {tiles} Winograd tiles share the transformed weights"
    if min(weight[:2]) < 32:
        return f"only {min(weight[:2])} channels share the transformed tiles"
    return None
