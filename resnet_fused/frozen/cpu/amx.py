"""Folded convolutions on the matrix unit of a CPU (AMX): float32 as the sum of three bfloat16, or bfloat16.

docs/design/amx.md has the method. The classes work as in frozen/cpu/convolutions.py.
"""

import torch
import torch.nn.functional as F

from ...kernels import library
from .direct import Direct
from .stem import Stem, why_not_geometry


def why_not_unit():
    """None, or why the matrix unit cannot be used."""
    if library.why_absent() is not None:
        return library.why_absent()
    return None if library.cpu_isa() == "amx" else "this CPU has no matrix unit, or it is not used"


class Amx(Direct):
    """A convolution with its shift, residual and ReLU. It takes any kernel, stride, padding and dilation, and one
    group."""

    name, unit = "amx", "amx"

    @staticmethod
    def why_not(step, dtype):
        return why_not_unit() or Direct.why_not(step, dtype)


class AmxStem(Stem):
    """Convolution and 3x3/2 max-pool in one pass over the image. The image may have any layout, and float32 where the
    engine has bfloat16."""

    name = "amx stem"

    def __init__(self, step, dtype):
        self._set(step, dtype)
        ops = library.namespace()
        self.operator, self.weight = ops.amx_stem, ops.amx_stem_pack(self.weight, dtype == torch.bfloat16)
        self.bias = F.pad(self.bias, (0, -self.channels % 32))

    @staticmethod
    def why_not(step, dtype):
        return why_not_unit() or why_not_geometry(
            step.conv, 8, "the stem on the matrix unit is for small square kernels over few channels"
        )
