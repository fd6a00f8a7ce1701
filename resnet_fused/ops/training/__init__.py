"""Training: residual blocks and the stem as one op each, forward and backward.

A block becomes conv1 with batch statistics -> bn1 + ReLU -> conv2 with statistics -> bn2 + shortcut + ReLU. The input,
the outputs of the convolutions and the output of the block are kept for the backward. The same kernel computes the maps
between them again, so they are equal bit for bit.
"""

from .residual import residual_blocks
from .stem import stem
from .unit import Block, Unit

__all__ = ["Block", "Unit", "residual_blocks", "stem"]
