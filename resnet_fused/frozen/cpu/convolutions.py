"""How a folded convolution can run on a CPU: [relu](conv2d(x, weight) + bias [+ residual]), channels_last.

Every class packs its weights once and has `__call__(x, residual=None)`. No later step reads the residual, so the result
may overwrite it. Which class is fastest depends on the layer, the batch and the machine, so freeze() measures.
"""

import torch

from ...kernels.torch_convolution import convolve, why_wrong_of
from ..fold import fold
from ..function import UNARY, Unary
from .amx import Amx, AmxStem
from .depthwise import Depthwise
from .direct import Direct
from .grouped import Grouped
from .stem import Stem, ThenPool
from .winograd import WINOGRAD

_onednn = torch.ops.mkldnn


def _has_bfloat16():
    return _onednn._is_mkldnn_bf16_supported()


class OneDNN:
    """oneDNN's convolution with its sum and ReLU as post-operations, weights in oneDNN's own order; float32, bfloat16."""

    name, growth = "onednn", 1.0

    def __init__(self, step, dtype):
        weight, bias = fold(step.conv, step.bn)
        conv = step.conv
        self.arguments = conv.padding, conv.stride, conv.dilation, conv.groups
        self.weight = _onednn._reorder_convolution_weight(weight.to(dtype), *self.arguments, step.shape)
        self.bias = bias.to(dtype)
        unary = UNARY.get(step.unary) or Unary(None, "relu" if step.relu else "none")
        self.relu = unary[1:]

    def __call__(self, x, residual=None):
        if residual is None:
            return _onednn._convolution_pointwise(x, self.weight, self.bias, *self.arguments, *self.relu)
        relu = "relu" if self.relu[0] == "relu" else None
        return _onednn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, *self.arguments, "add", 1.0, relu, [], ""
        )

    @staticmethod
    def why_not(step, dtype):
        if not torch.backends.mkldnn.is_available():
            return "this torch has no oneDNN"
        if dtype == torch.bfloat16 and not _has_bfloat16():
            return "oneDNN has no bfloat16 on this CPU"
        return why_wrong_of(step.convolution(dtype), "cpu")


class OneDNNThenReLU(OneDNN):
    """oneDNN's convolution with its sum, then torch's ReLU: oneDNN's own ReLU makes a NaN 0."""

    name = "onednn, then relu"

    def __init__(self, step, dtype):
        super().__init__(step, dtype)
        self.relu = Unary(None, "none")[1:]

    def __call__(self, x, residual=None):
        return super().__call__(x, residual).relu_()

    @staticmethod
    def why_not(step, dtype):
        return OneDNN.why_not(step, dtype) if step.relu else "there is no ReLU"


class Torch:
    """torch's own convolution and what follows it, for machines without oneDNN."""

    name, growth = "torch", 1.0

    def __init__(self, step, dtype):
        self.weight, self.bias = (t.to(dtype) for t in fold(step.conv, step.bn))
        self.conv, self.relu, self.unary = step.conv, step.relu, step.unary

    def __call__(self, x, residual=None):
        conv = self.conv
        out = convolve(x, self.weight, conv.stride, conv.padding, conv.dilation, conv.groups, self.bias)
        if residual is not None:
            out = out.add_(residual)
        out = out if self.unary is None else UNARY[self.unary].function(out)
        return out.relu_() if self.relu else out

    @staticmethod
    def why_not(step, dtype):
        return None


DIRECT = (Direct, Depthwise, Grouped, OneDNN, Torch)
STEM = (Stem, AmxStem, ThenPool(OneDNN), ThenPool(Torch))
# These classes put a NaN or an infinity into the outputs that read it, and into no other output.
EXACT = (Direct, Depthwise, Grouped, OneDNNThenReLU, Torch)
EXACT_STEM = (Stem, ThenPool(OneDNNThenReLU), ThenPool(Torch))


def candidates(step, dtype, exact):
    """The classes that can run `step`. `exact`: only those that keep a NaN where eager has it."""
    if step.pool:
        kinds = EXACT_STEM if exact else STEM
    elif exact:
        kinds = (Direct, Depthwise, Grouped, Torch) if step.unary else EXACT if step.relu else DIRECT
    elif step.unary is not None:
        kinds = (Amx, *DIRECT)
    else:
        kinds = (*WINOGRAD, Amx, *DIRECT)
    able = [kind for kind in kinds if kind.why_not(step, dtype) is None]
    return [kind for kind in able if kind.name.partition(",")[0] != "torch"] or able
