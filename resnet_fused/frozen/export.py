"""Leaving Python: programs of torch's own operators, for runtimes that do not have this package."""

import torch
import torch.nn.functional as F
from torch import nn

from .fold import fold


def decompositions():
    """{operator: the same in torch's operators}, for `ExportedProgram.run_decompositions` of a model in evaluation.

    `torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions())` can be loaded without this package,
    by AOTInductor in a C++ program for example. Export inside `torch.no_grad()`: where parameters want gradients a model
    takes the ops of training. ONNX export and `torch.jit.trace` need nothing: they never see the fused
    ops. The ops of training are not in the table.
    """
    library = torch.ops.resnet_fused
    return {
        library.conv_bn_relu.default: _conv_bn_relu,
        library.bn_relu.default: _bn_relu,
        library.add_relu.default: lambda x, residual: torch.relu(x + residual),
    }


def _conv_bn_relu(x, weight, mean, var, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps, relu):
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    return _bn_relu(z, mean, var, bn_weight, bn_bias, residual, eps, False, relu)


def _bn_relu(x, mean, spread, weight, bias, residual, eps, batch_stats, relu):
    if batch_stats:  # spread is 1 / sqrt(var + eps), of this batch
        spread, eps = spread.square().reciprocal(), 0.0
    out = F.batch_norm(x, mean, spread, weight, bias, False, 0.0, eps)
    if residual is not None:
        out = out + residual  # not `+=` as in the reference: a decomposition has to be functional
    return torch.relu(out) if relu else out


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
