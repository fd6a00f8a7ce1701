"""A frozen network in torch's own operators, for runtimes that do not have this package."""

import torch
import torch.nn.functional as F
from torch import nn

from .fold import fold


class FoldedResNet(nn.Module):
    """A frozen network as a plain module: folded convolutions, ReLUs and sums in torch's own operators.

    Of an `Engine` (see `Engine.module`), whose packed weights and kernels no other runtime knows. x: [N, 3, H, W] in the
    engine's dtype -> logits [N, num_classes]. A snapshot: it shares nothing with the model.
    """

    def __init__(self, stem, pool, blocks, avgpool, fc, dtype):
        super().__init__()
        self.stem, self.pool, self.avgpool = _folded(stem, dtype), pool, avgpool
        self.blocks = nn.Sequential(*(_FoldedBlock(block, dtype) for block in blocks))
        self.fc = nn.Linear(fc.in_features, fc.out_features, fc.bias is not None, dtype=dtype)
        self.fc.load_state_dict(fc.state_dict())
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = self.pool(torch.relu(self.stem(x)))
        return self.fc(torch.flatten(self.avgpool(self.blocks(x)), 1))


class _FoldedBlock(nn.Module):
    def __init__(self, block, dtype):
        super().__init__()
        self.convs = nn.ModuleList(_folded(site, dtype) for site in block.sites)
        self.shortcut = _folded(block.projection, dtype) if block.projection else block.shortcut or nn.Identity()

    def forward(self, x):
        out = x
        for conv in self.convs[:-1]:
            out = F.relu(conv(out))
        return F.relu(self.convs[-1](out) + self.shortcut(x))


def _folded(site, dtype):
    old = site.conv
    conv = nn.Conv2d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups, dtype=dtype
    )  # fmt: skip
    weight, bias = fold(old, site.bn)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv
