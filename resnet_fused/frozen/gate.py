"""A map times a gate, as squeeze and excitation has it, with what follows."""

import torch.nn.functional as F
from torch import nn


class Gate(nn.Module):
    """[relu](x * gate [+ residual]). x, residual: [N, C, H, W]; gate: [N, C, 1, 1]."""

    def __init__(self, relu):
        super().__init__()
        self.relu = relu

    def forward(self, x, gate, residual=None):
        y = x * gate
        y = y if residual is None else y + residual
        return F.relu(y) if self.relu else y
