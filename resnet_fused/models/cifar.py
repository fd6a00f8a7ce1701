"""The networks of the paper's section 4.2 for 32x32 images: 6n + 2 layers, three stages of n blocks, option A."""

from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import weights as checkpoints
from .resnet import BasicBlock, NormLayer, ResNet, conv3x3

_NO_POOL = nn.Identity()
_BLOCKS = {f"resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}


class CifarResNet(ResNet):
    """3x3 stem, three stages of 16, 32 and 64 channels, average pool, `fc`. x: [N, 3, H, W] -> [N, num_classes].

    Args:
        n: residual blocks in each stage; the network has 6n + 2 layers.
        shortcut: "zero_pad" (option A, as in the paper) or "projection" (option B).
        norm_layer: as for `ResNet`.

    Raises:
        ValueError: n < 1; an unknown `shortcut`.
    """

    def __init__(
        self,
        n: int,
        num_classes: int = 10,
        shortcut: Literal["projection", "zero_pad"] = "zero_pad",
        norm_layer: NormLayer | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n should be at least 1, got {n}")
        # Another stem and three stages: ResNet's own constructor would build the wrong network.
        nn.Module.__init__(self)
        self._set_up(norm_layer, shortcut, inplanes=16)
        self.conv1 = conv3x3(3, 16)
        self.bn1 = self._norm_layer(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._make_layer(BasicBlock, 16, n)
        self.layer2 = self._make_layer(BasicBlock, 32, n, stride=2)
        self.layer3 = self._make_layer(BasicBlock, 64, n, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        self._initialise(zero_init_residual=False)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self._fused_stem(x, _NO_POOL)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self._fused_layer(layer, x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.fc(x)


def _cifar(name, weights, progress, kwargs):
    state_dict = checkpoints.resolve(name, weights, progress, kwargs)
    return checkpoints.filled(CifarResNet(_BLOCKS[name], **kwargs), state_dict, weights)


def resnet20(weights: str | PathLike[str] | None = None, progress: bool = True, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32x32 images: 269,722 parameters, 40.6 MMAC.

    Args:
        weights: None (random) or a path to a `.pth` or `.safetensors` state dict.
        **kwargs: constructor arguments of `CifarResNet`.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: a missing file, not a state dict, wrong keys (named).
    """
    return _cifar("resnet20", weights, progress, kwargs)


def resnet32(weights: str | PathLike[str] | None = None, progress: bool = True, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for 32x32 images. See `resnet20`."""
    return _cifar("resnet32", weights, progress, kwargs)


def resnet44(weights: str | PathLike[str] | None = None, progress: bool = True, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for 32x32 images. See `resnet20`."""
    return _cifar("resnet44", weights, progress, kwargs)


def resnet56(weights: str | PathLike[str] | None = None, progress: bool = True, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for 32x32 images. See `resnet20`."""
    return _cifar("resnet56", weights, progress, kwargs)


def resnet110(weights: str | PathLike[str] | None = None, progress: bool = True, **kwargs: Any) -> CifarResNet:
    """ResNet-110 for 32x32 images. See `resnet20`."""
    return _cifar("resnet110", weights, progress, kwargs)
