"""Deep residual networks (He et al., arXiv:1512.03385) on fused ops, in the style and with the interface of torchvision.

Modules, names, initial values and random numbers are torchvision's, so checkpoints and seeds carry over in both
directions. Only `forward` differs: a block calls fused ops instead of its children, unless a child has a hook or was changed.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..modules import one_call, training
from ..modules.eligible import check_not_scripted, checks_of, why_not_fused
from ..modules.evaluation import conv_bn_relu, conv_bn_relu_and_shortcut, conv_bn_relu_pool, network_input
from ..modules.zero_pad import ZeroPadShortcut
from . import weights as checkpoints

NormLayer = Callable[[int], nn.Module]
Weights = str | PathLike[str] | Enum | None


def conv3x3(in_planes, out_planes, stride=1, groups=1, dilation=1):
    return nn.Conv2d(
        in_planes, out_planes, 3, stride=stride, padding=dilation, groups=groups, bias=False, dilation=dilation
    )


def conv1x1(in_planes, out_planes, stride=1):
    return nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False)


_OF_STEM, _OF_BASIC_BLOCK, _OF_BOTTLENECK = checks_of(1), checks_of(2), checks_of(3)


class _Residual(nn.Module):
    """Runs a block by fused ops where a caller cannot tell the difference, else module by module."""

    def forward(self, x: Tensor) -> Tensor:
        if self.why_not_fused(x):
            return self.forward_by_modules(x)
        main, downsample = chain = self._fused_chain()
        if (out := one_call.evaluate(x, main, downsample)) is not None:
            return out
        way = training.route(x, [chain])
        if way == "modules":
            return self.forward_by_modules(x)
        if way == "training":
            return training.residual(x, [chain])
        first, *others, last = main
        out, identity = conv_bn_relu_and_shortcut(x, *first, downsample)
        for conv, bn in others:
            out = conv_bn_relu(out, conv, bn)
        return conv_bn_relu(out, *last, residual=identity)


class BasicBlock(_Residual):
    """Two 3x3 convolutions: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    expansion = 1
    __prepare_scriptable__ = check_not_scripted

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: NormLayer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        if groups != 1 or base_width != 64:
            raise ValueError("BasicBlock only supports groups=1 and base_width=64")
        if dilation > 1:
            raise NotImplementedError("Dilation > 1 not supported in BasicBlock")
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def why_not_fused(self, x: Tensor) -> str | None:
        return why_not_fused(x, self._modules, _OF_BASIC_BLOCK, self.downsample)

    def _fused_chain(self):
        """([(conv, bn), ...], (conv, bn) of the projection or None)"""
        m = self._modules
        return [(m["conv1"], m["bn1"]), (m["conv2"], m["bn2"])], self.downsample

    def forward_by_modules(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(_Residual):
    """1x1, 3x3, 1x1 convolutions with the stride in the 3x3 one (ResNet V1.5, as torchvision has it)."""

    expansion = 4
    __prepare_scriptable__ = check_not_scripted

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
        base_width: int = 64, dilation: int = 1, norm_layer: NormLayer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = conv1x1(inplanes, width)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def why_not_fused(self, x: Tensor) -> str | None:
        return why_not_fused(x, self._modules, _OF_BOTTLENECK, self.downsample)

    def _fused_chain(self):
        """([(conv, bn), ...], (conv, bn) of the projection or None)"""
        m = self._modules
        return [(m["conv1"], m["bn1"]), (m["conv2"], m["bn2"]), (m["conv3"], m["bn3"])], self.downsample

    def forward_by_modules(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, four layers of residual blocks, average pool, `fc`. x: [N, 3, H, W] -> logits [N, num_classes].

    Args: as torchvision's `ResNet`, and
        shortcut: "projection" (1x1 convolution and batch norm where the shape changes, the paper's option B) or
            "zero_pad" (option A, without parameters).
        memory_efficient: in training, keep less for the backward and compute it again: see docs/guide/training.md.

    Raises:
        ValueError: `replace_stride_with_dilation` is not None or three values; an unknown `shortcut`.
        NotImplementedError, ValueError: what the block does not support (BasicBlock: groups, width, dilation).
    """

    memory_efficient = False  # also of networks that were built elsewhere
    __prepare_scriptable__ = check_not_scripted

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
        shortcut: Literal["projection", "zero_pad"] = "projection",
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.memory_efficient = memory_efficient
        self._set_up(norm_layer, shortcut, inplanes=64)
        if replace_stride_with_dilation is None:
            replace_stride_with_dilation = [False, False, False]
        if len(replace_stride_with_dilation) != 3:
            got = replace_stride_with_dilation
            raise ValueError(f"replace_stride_with_dilation should be None or a 3-element tuple, got {got}")
        self.groups = groups
        self.base_width = width_per_group
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2, dilate=replace_stride_with_dilation[0])
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2, dilate=replace_stride_with_dilation[1])
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2, dilate=replace_stride_with_dilation[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        self._initialise(zero_init_residual)

    def _set_up(self, norm_layer, shortcut, inplanes):
        """Sets the attributes that `_make_layer` reads."""
        if shortcut not in ("projection", "zero_pad"):
            raise ValueError(f"shortcut should be 'projection' or 'zero_pad', got {shortcut!r}")
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self._shortcut = shortcut
        self.inplanes, self.dilation = inplanes, 1
        self.groups, self.base_width = 1, 64

    def _initialise(self, zero_init_residual):
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.constant_(m.weight, 1)
                nn.init.constant_(m.bias, 0)
        # With a zero gamma in its last batch norm every block starts as the identity (Goyal et al., arXiv:1706.02677).
        if zero_init_residual:
            for m in self.modules():
                if isinstance(m, Bottleneck) and m.bn3.weight is not None:
                    nn.init.constant_(m.bn3.weight, 0)
                elif isinstance(m, BasicBlock) and m.bn2.weight is not None:
                    nn.init.constant_(m.bn2.weight, 0)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        previous_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        downsample = None
        out_planes = planes * block.expansion
        if stride != 1 or self.inplanes != out_planes:
            if self._shortcut == "zero_pad":
                downsample = ZeroPadShortcut(self.inplanes, out_planes, stride)
            else:
                downsample = nn.Sequential(conv1x1(self.inplanes, out_planes, stride), self._norm_layer(out_planes))
        args = (self.groups, self.base_width)
        layers = [block(self.inplanes, planes, stride, downsample, *args, previous_dilation, self._norm_layer)]
        self.inplanes = out_planes
        for _ in range(1, blocks):
            layers.append(block(self.inplanes, planes, 1, None, *args, self.dilation, self._norm_layer))
        return nn.Sequential(*layers)

    def why_not_fused(self, x: Tensor) -> str | None:
        """Why the stem runs module by module, or None."""
        return why_not_fused(x, self._modules, _OF_STEM)

    def _fused_stem(self, x, maxpool):
        parts = self.conv1, self.bn1, maxpool
        way = "modules" if self.why_not_fused(x) else training.route_of_stem(x, *parts)
        if way == "modules":
            return maxpool(self.relu(self.bn1(self.conv1(x))))
        x = network_input(x, self)
        if way == "training":
            return training.stem(x, *parts, recompute=self.memory_efficient)
        return conv_bn_relu_pool(x, *parts)

    def _fused_layer(self, layer, x):
        chains = training.chains_of(x, layer, _Residual.forward)
        return layer(x) if chains is None else training.residual(x, chains, recompute=self.memory_efficient)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self._fused_stem(x, self.maxpool)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self._fused_layer(layer, x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


def build(name, block, layers, weights, progress, kwargs):
    """The `ResNet` that a constructor called `name` returns."""
    state_dict = checkpoints.resolve(name, weights, progress, kwargs)
    return checkpoints.filled(ResNet(block, layers, **kwargs), state_dict, weights)


def resnet18(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-18. See `resnet34`."""
    return build("resnet18", BasicBlock, [2, 2, 2, 2], weights, progress, kwargs)


def resnet34(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-34: 21,797,672 parameters, 3.67 GMAC at 224x224.

    Args:
        weights: None (random); a path to a `.pth` or `.safetensors` state dict; or torchvision's weight enum or its name
            (`"IMAGENET1K_V1"`, `"DEFAULT"`), which torchvision downloads. In a file the state dict may stand under
            "state_dict", "model_state_dict", "model" or "net", and its keys may have one prefix, such as "module.".
        progress: show the download's progress.
        **kwargs: constructor arguments of `ResNet`; `pretrained=True` and `pretrained=False`, with a warning.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: a missing file, not a state dict of this network (one line names the
            keys), no network.
    """
    return build("resnet34", BasicBlock, [3, 4, 6, 3], weights, progress, kwargs)


def resnet50(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-50. See `resnet34`."""
    return build("resnet50", Bottleneck, [3, 4, 6, 3], weights, progress, kwargs)


def resnet101(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-101. See `resnet34`."""
    return build("resnet101", Bottleneck, [3, 4, 23, 3], weights, progress, kwargs)


def resnet152(weights: Weights = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-152. See `resnet34`."""
    return build("resnet152", Bottleneck, [3, 8, 36, 3], weights, progress, kwargs)
