"""Folded grouped 3x3 convolutions on vectors of this CPU, with their activation. The classes work as in
frozen/cpu/convolutions.py.

They run inside the one call of a stretch, where oneDNN's would each be a call of their own.
"""

import torch

from ...kernels import layout, library
from ...kernels.shapes import out_size
from ..fold import fold
from .pointwise import number_of

PANEL = 16  # filters that the kernel computes together (csrc/cpu/grouped/grouped.h)


class Grouped:
    """A convolution of groups with as many outputs as inputs, its shift and activation; float32, bfloat16."""

    name, growth = "grouped", 1.0

    def __init__(self, step, dtype):
        weight, self.bias = fold(step.conv, step.bn)
        self.weight = pack(weight.to(dtype))
        self.operator, self.function = library.namespace().grouped_conv, number_of(step)
        conv = step.conv
        self.geometry = weight.shape[1], conv.stride[0], conv.padding[0]

    def __call__(self, x):
        sizes = (out_size(size, 3, *self.geometry[1:], 1) for size in x.shape[2:])
        out = torch.empty(
            (*x.shape[:2], *sizes), dtype=x.dtype, device="cpu", memory_format=layout.CHANNELS_LAST
        )  # fmt: skip
        self.operator(x, self.weight, self.bias, out, *self.geometry, self.function)
        return out

    @staticmethod
    def why_not(step, dtype):
        if library.why_absent() is not None:
            return library.why_absent()
        conv = step.conv
        if conv.groups == 1 or conv.in_channels != conv.out_channels or conv.in_channels < PANEL:
            return "the grouped kernels are for several groups, and 16 channels or more that the convolution keeps"
        width = conv.in_channels // conv.groups
        if width not in (4, 8) and (width < PANEL or width % 2):
            return "the grouped kernels are for groups of 4, 8, or an even number of channels from 16 on"
        square = all(a == b for a, b in (conv.kernel_size, conv.stride, conv.padding)) and conv.dilation == (1, 1)
        if not square or conv.kernel_size[0] != 3 or conv.stride[0] not in (1, 2):
            return "the grouped kernels are for 3x3, stride 1 or 2"
        return "the grouped kernels add no residual" if step.adds or step.pool else None


def pack(weight):
    """[channels, channels of a group, 3, 3] -> the same values in the order of csrc/cpu/grouped/grouped.h."""
    channels, width = weight.shape[:2]
    span = max(width, PANEL)
    starts = [
        min(unit, channels - span) + min(panel, span - PANEL)
        for unit in range(0, channels, span)
        for panel in range(0, span, PANEL)
    ]
    filters = torch.tensor(starts, device="cpu")[:, None] + torch.arange(PANEL, device="cpu")
    pair = 4 // weight.element_size()
    panels = weight[filters].view(len(starts), PANEL, width // pair, pair, 3, 3)
    return panels.permute(0, 4, 2, 5, 1, 3).contiguous()  # panel, row, word, column, filter, channel of a word
