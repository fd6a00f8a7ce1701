"""The paper's parameter-free shortcut, option A."""

from torch import nn


class ZeroPadShortcut(nn.Module):
    """Option A of the paper, section 3.3: every stride-th pixel, and zeros for the new channels. No parameters."""

    def __init__(self, in_planes, out_planes, stride):
        super().__init__()
        if out_planes < in_planes:
            raise ValueError(f"a zero-padding shortcut cannot go from {in_planes} to {out_planes} channels")
        self.in_planes, self.out_planes, self.stride = in_planes, out_planes, stride

    def extra_repr(self):
        return f"{self.in_planes}, {self.out_planes}, stride={self.stride}"

    def forward(self, x):
        extra = self.out_planes - self.in_planes
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, extra))
