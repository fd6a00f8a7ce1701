"""How a folded convolution can run on a CPU: [relu](conv2d(x, weight) + bias [+ residual]), channels_last.

Every class packs once and has `__call__(x, residual=None)`. The residual is dead afterwards, so the result may be written
over it. Which of them is fastest depends on the layer, the batch and the machine: freeze() measures.
"""

import torch
import torch.nn.functional as F

from ...kernels import layout, library
from ..fold import fold
from .amx import Amx, AmxStem
from .direct import Direct

_onednn = torch.ops.mkldnn


class OneDNN:
    """oneDNN's convolution with its sum and ReLU as post-operations, weights in oneDNN's own order; float32, bfloat16."""

    name = "onednn"

    def __init__(self, site, dtype):
        weight, bias = fold(site.conv, site.bn)
        conv = site.conv
        self.arguments = conv.padding, conv.stride, conv.dilation, conv.groups
        self.weight = _onednn._reorder_convolution_weight(weight.to(dtype), *self.arguments, site.shape)
        self.bias = bias.to(dtype)
        self.relu = "relu" if site.relu else "none"

    def __call__(self, x, residual=None):
        if residual is None:
            return _onednn._convolution_pointwise(x, self.weight, self.bias, *self.arguments, self.relu, [], "")
        relu = "relu" if self.relu == "relu" else None
        return _onednn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, *self.arguments, "add", 1.0, relu, [], ""
        )

    @staticmethod
    def why_not(site, dtype):
        return None if torch.backends.mkldnn.is_available() else "this torch has no oneDNN"


class OneDNNThenReLU(OneDNN):
    """oneDNN's convolution with its sum, then torch's ReLU: oneDNN's own makes a NaN 0."""

    name = "onednn, then relu"

    def __init__(self, site, dtype):
        super().__init__(site, dtype)
        self.relu = "none"

    def __call__(self, x, residual=None):
        return super().__call__(x, residual).relu_()

    @staticmethod
    def why_not(site, dtype):
        return OneDNN.why_not(site, dtype) if site.relu else "there is no ReLU"


class Torch:
    """torch's own convolution and what follows it: where there is no oneDNN."""

    name = "torch"

    def __init__(self, site, dtype):
        self.weight, self.bias = (t.to(dtype) for t in fold(site.conv, site.bn))
        self.conv, self.relu = site.conv, site.relu

    def __call__(self, x, residual=None):
        conv = self.conv
        out = F.conv2d(x, self.weight, self.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        if residual is not None:
            out = out.add_(residual)
        return out.relu_() if self.relu else out

    @staticmethod
    def why_not(site, dtype):
        return None


class _Winograd:
    """F(m x m, 3x3): 4 (m = 4) or 2.25 (m = 2) times fewer multiplications; float32, bfloat16. `taps`: docs/winograd.md."""

    m, taps = 4, False

    def __init__(self, site, dtype):
        weight, self.bias = fold(site.conv, site.bn)
        self.ops = library.namespace()
        self.weight = self.ops.winograd_pack(weight.contiguous(), None, self.m, self.taps, dtype == torch.bfloat16)
        self.channels, self.padding, self.relu = weight.shape[0], site.conv.padding[0], site.relu

    def __call__(self, x, residual=None):
        out = residual
        if out is None:
            grow = 2 * self.padding - 2
            shape = (x.shape[0], self.channels, x.shape[2] + grow, x.shape[3] + grow)
            out = torch.empty(shape, dtype=x.dtype, memory_format=layout.CHANNELS_LAST)
        self.ops.winograd_conv(x, self.weight, self.bias, residual, out, self.m, self.padding, self.relu, None)
        return out

    @classmethod
    def why_not(cls, site, dtype):
        conv = site.conv
        if library.why_absent() is not None:
            return library.why_absent()
        if dtype == torch.bfloat16:
            if cls.taps:
                return "weights in bfloat16 are small enough to be kept transformed"
            if library.cpu_isa() != "avx512_bf16":
                return "Winograd in bfloat16 is for CPUs with AVX512-BF16 and no matrix unit"
        if conv.kernel_size != (3, 3) or conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
            return "Winograd is for 3x3 convolutions of stride 1"
        return None if conv.padding in ((0, 0), (1, 1)) else "Winograd is for padding 0 or 1"


class WinogradF4(_Winograd):
    name = "winograd F(4x4,3x3)"


class WinogradF4Taps(_Winograd):
    name, taps = "winograd F(4x4,3x3), weights transformed on the fly", True


class WinogradF2(_Winograd):
    name, m = "winograd F(2x2,3x3)", 2


class WinogradF2Taps(_Winograd):
    name, m, taps = "winograd F(2x2,3x3), weights transformed on the fly", 2, True


class ThenPool:
    """A convolution by `Way`, then torch's max-pool: the stem in two steps."""

    def __init__(self, way):
        self.way, self.name = way, f"{way.name}, max_pool2d"

    def why_not(self, site, dtype):
        return self.way.why_not(site, dtype)

    def __call__(self, site, dtype):
        conv = self.way(site, dtype)
        return lambda x: F.max_pool2d(conv(x), 3, 2, 1)


class StemWithPool:
    """Convolution and 3x3/2 max-pool in one pass over the image: the map between them is never written. float32, bfloat16."""

    name, any_layout = "stem", True

    def __init__(self, site, dtype):
        weight, self.bias = fold(site.conv, site.bn)
        self.ops, self.dtype = library.namespace(), dtype
        self.weight = self.ops.stem_pack(weight.contiguous(), None)
        conv = site.conv
        self.arguments = conv.kernel_size[0], conv.stride[0], conv.padding[0]

    def __call__(self, x):
        kernel, stride, padding = self.arguments
        pixels = ((size + 2 * padding - kernel) // stride for size in x.shape[2:])  # the convolution's size, less 1
        shape = (x.shape[0], self.bias.shape[0], *(p // 2 + 1 for p in pixels))
        out = torch.empty(shape, dtype=self.dtype, memory_format=layout.CHANNELS_LAST)
        self.ops.stem_conv_pool(x, self.weight, self.bias, out, *self.arguments)
        return out

    @staticmethod
    def why_not(site, dtype):
        conv = site.conv
        if library.why_absent() is not None:
            return library.why_absent()
        square = all(a == b for a, b in (conv.kernel_size, conv.stride, conv.padding))
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.kernel_size[0] <= 16 and conv.in_channels <= 4
        if not square or not plain:
            return "the fused stem is for square kernels over a few channels"
        return None if conv.padding[0] < conv.kernel_size[0] else "the padding is as wide as the kernel"


DIRECT = (Direct, OneDNN, Torch)
WINOGRAD = (WinogradF4, WinogradF4Taps, WinogradF2, WinogradF2Taps)
STEM = (StemWithPool, AmxStem, ThenPool(OneDNN), ThenPool(Torch))
# A NaN or an infinity comes out of the pixels that read it, and of no others.
EXACT, EXACT_STEM = (Direct, OneDNNThenReLU, Torch), (StemWithPool, ThenPool(OneDNNThenReLU), ThenPool(Torch))


def ways(site, dtype, exact):
    """The classes that can run `site`; `exact`: only those that keep a NaN where it belongs."""
    if site.pool:
        kinds = EXACT_STEM if exact else STEM
    elif exact:
        kinds = EXACT if site.relu else DIRECT
    else:
        kinds = (*WINOGRAD, Amx, *DIRECT)
    able = [way for way in kinds if way.why_not(site, dtype) is None]
    return [way for way in able if way.name.partition(",")[0] != "torch"] or able
