"""Training-mode fusion: residual blocks and the stem as one op each, forward and backward.

A block becomes conv1 with batch statistics -> bn1 + ReLU -> conv2 with statistics -> bn2 + shortcut + ReLU. The input, the
outputs of the convolutions and the output of the block are kept for the backward; what lies between is computed again from
them by the same kernel, so bit for bit.
"""

from .residual import residual_blocks
from .stem import stem
from .unit import Block, Unit

__all__ = ["Block", "Unit", "residual_blocks", "stem"]
