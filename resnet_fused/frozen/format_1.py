"""The steps of a network in an engine file of format 1, which has a ResNet's modules under torchvision's names."""

import itertools

from torch import nn

from ..modules.eligible import why_not_pool
from .function import Value
from .network import Apply, ConvBn, Head


def read(model):
    """(the steps of `model`, the template of its result)."""
    steps, values = [], itertools.count(1)

    def convolution(name, conv, bn, x, **follows):
        steps.append(ConvBn(name, conv, bn, x, output=next(values), **follows))
        return steps[-1].output

    def through(name, module, x):
        if module is None or type(module) is nn.Identity:
            return x
        steps.append(Apply(name, module, (x,), next(values)))
        return steps[-1].output

    pool = getattr(model, "maxpool", None)  # networks for small images have none
    fused = why_not_pool(pool) is None
    x = convolution("conv1", model.conv1, model.bn1, 0, pool=fused)
    x = x if fused else through("maxpool", pool, x)
    for name, block in _blocks(model):
        shortcut = f"{name}.downsample"
        if isinstance(block.downsample, nn.Sequential):
            residual = convolution(shortcut, *block.downsample, x, relu=False)
        else:
            residual = through(shortcut, block.downsample, x)
        *firsts, last = [i for i in (1, 2, 3) if getattr(block, f"conv{i}", None) is not None]
        for i in firsts:
            x = convolution(f"{name}.conv{i}", getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), x)
        conv, bn = getattr(block, f"conv{last}"), getattr(block, f"bn{last}")
        x = convolution(f"{name}.conv{last}", conv, bn, x, residual=residual)
    steps.append(Head(model.avgpool, model.fc, x, next(values)))
    return steps, Value(steps[-1].output)


def _blocks(model):
    """(name, block) of layer1, layer2, ..., as many as the model has."""
    for i in itertools.count(1):
        if not hasattr(model, f"layer{i}"):
            return
        for j, block in enumerate(getattr(model, f"layer{i}")):
            yield f"layer{i}.{j}", block
