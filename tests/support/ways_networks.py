"""Small networks for tests/ways: how each is built, fused and eager, and what its parts are called."""

import copy
import functools
from typing import NamedTuple

import torch
from foreign import Plain, lively, shorten, timm_net, tv_net
from torch import nn

import resnet_fused


class Unit(nn.Module):
    """resnet_fused.nn.ConvBNReLU in torch's modules."""

    def __init__(self, inputs, outputs, kernel, stride=1, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x, residual=None):
        out = self.bn(self.conv(x))
        if residual is not None:
            out += residual
        return out if self.relu is None else self.relu(out)


class OfUnits(nn.Module):
    """A residual block of one's own. unit: `Unit`, or the module of this package that it stands for."""

    def __init__(self, unit, inputs, outputs, stride):
        super().__init__()
        self.first = unit(inputs, outputs, 3, stride)
        self.second = unit(outputs, outputs, 3)
        self.short = unit(inputs, outputs, 1, stride, relu=False)

    def forward(self, x):
        return self.second(self.first(x), self.short(x))


class Network(nn.Module):
    """Stem, one layer of blocks, average pool, `fc`."""

    def __init__(self, stem, *blocks):
        super().__init__()
        self.stem, self.layer = stem, nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.layer(self.stem(x))), 1))


def of_units(unit):
    torch.manual_seed(0)
    return Network(unit(3, 16, 3, 2), OfUnits(unit, 16, 16, 1), OfUnits(unit, 16, 32, 2))


def sequence():
    torch.manual_seed(0)
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    convs = [nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in ((3, 16), (16, 32))]
    return nn.Sequential(
        convs[0], nn.BatchNorm2d(16), nn.ReLU(), convs[1], nn.BatchNorm2d(32), nn.ReLU(inplace=True), *ends
    )


def somebodys():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return Network(stem, Plain(16, 16), Plain(16, 32, 2))


class Kind(NamedTuple):
    """eager, fused: build the network, in evaluation. late: converted only when the network is used, after whatever is done
    to it. parts: {role: path of a module}."""

    eager: callable
    fused: callable
    parts: dict
    late: bool = False


def _ours():
    model = shorten(resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1])).eval()
    model.load_state_dict(_eager("torchvision").state_dict())
    return model


def _ours_of_units():
    model = of_units(resnet_fused.nn.ConvBNReLU).eval()
    model.load_state_dict(_eager("of our modules").state_dict())
    return model


def _converted(name):
    return lambda: resnet_fused.convert(copy.deepcopy(_eager(name)), strict=True)


def _cifar():
    torch.manual_seed(0)
    return resnet_fused.CifarResNet(1, num_classes=5, shortcut="projection")


class ByModules(resnet_fused.CifarResNet):
    """The same network without a fused op."""

    def why_not_fused(self, x):
        return "module by module"

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class BlockByModules(resnet_fused.BasicBlock):
    def why_not_fused(self, x):
        return "module by module"


def _eager_cifar():
    model = _cifar()
    model.__class__ = ByModules
    for block in model.modules():
        if isinstance(block, resnet_fused.BasicBlock):
            block.__class__ = BlockByModules
    return model


def _torchvision():
    return lively(lambda: shorten(tv_net()))


_RESNET = {
    "stem": "conv1", "stem norm": "bn1", "layer": "layer2", "block": "layer2.0", "conv": "layer2.0.conv2",
    "strided": "layer2.0.conv1", "norm": "layer2.0.bn1", "relu": "layer2.0.relu", "shortcut": "layer2.0.downsample",
    "fc": "fc", "pool": "maxpool",
}  # fmt: skip
_UNITS = {
    "stem": "stem.conv", "stem norm": "stem.bn", "layer": "layer", "block": "layer.1", "conv": "layer.1.second.conv",
    "strided": "layer.1.first.conv", "norm": "layer.1.first.bn", "relu": "layer.1.first.relu", "shortcut": "layer.1.short",
    "fc": "fc",
}  # fmt: skip
_SOMEBODYS = {
    "stem": "stem.0", "stem norm": "stem.1", "layer": "layer", "block": "layer.1", "conv": "layer.1.second",
    "strided": "layer.1.first", "norm": "layer.1.norm_a", "shortcut": "layer.1.short", "fc": "fc",
}  # fmt: skip
KINDS = {
    "ours": Kind(_torchvision, _ours, _RESNET),
    "torchvision": Kind(_torchvision, _converted("torchvision"), _RESNET),
    "converted late": Kind(_torchvision, _torchvision, _RESNET, late=True),
    "timm": Kind(
        lambda: lively(lambda: shorten(timm_net())), _converted("timm"), _RESNET | {"relu": "layer2.0.act1"}
    ),
    "of our modules": Kind(lambda: lively(lambda: of_units(Unit)), _ours_of_units, _UNITS),
    "somebody's": Kind(lambda: lively(somebodys), _converted("somebody's"), _SOMEBODYS),
    "sequence": Kind(
        lambda: lively(sequence), _converted("sequence"),
        {"stem": "0", "stem norm": "1", "conv": "3", "strided": "3", "norm": "4", "relu": "5", "fc": "8"},
    ),
    "frozen": Kind(lambda: lively(_eager_cifar), lambda: lively(_cifar), {k: v for k, v in _RESNET.items() if k != "pool"}),
}  # fmt: skip


@functools.cache
def _eager(name):
    return KINDS[name].eager()


@functools.cache
def _fused(name):
    return KINDS[name].fused()


def network(name, fused):
    """A copy of the network of a kind."""
    return copy.deepcopy((_fused if fused else _eager)(name))
