"""ResNeXt (Xie et al., arXiv:1611.05431) and wide ResNets (Zagoruyko and Komodakis, arXiv:1605.07146): bottlenecks with
grouped and with wider 3x3 convolutions."""

from .resnet import Bottleneck, build


def _bottlenecks(name, layers, weights, progress, kwargs, **widths):
    for argument, value in widths.items():
        if kwargs.setdefault(argument, value) != value:
            raise ValueError(f"{name}: {argument} should be {value}, got {kwargs[argument]}")
    return build(name, Bottleneck, layers, weights, progress, kwargs)


def resnext50_32x4d(weights=None, progress=True, **kwargs):
    """ResNeXt-50 with 32 groups of 4 channels: 25,028,904 parameters. See `resnet34`.

    Raises also ValueError: `groups` or `width_per_group` other than the network's own.
    """
    return _bottlenecks("resnext50_32x4d", [3, 4, 6, 3], weights, progress, kwargs, groups=32, width_per_group=4)


def resnext101_32x8d(weights=None, progress=True, **kwargs):
    """ResNeXt-101 with 32 groups of 8 channels: 88,791,336 parameters. See `resnext50_32x4d`."""
    return _bottlenecks("resnext101_32x8d", [3, 4, 23, 3], weights, progress, kwargs, groups=32, width_per_group=8)


def resnext101_64x4d(weights=None, progress=True, **kwargs):
    """ResNeXt-101 with 64 groups of 4 channels: 83,455,272 parameters. See `resnext50_32x4d`."""
    return _bottlenecks("resnext101_64x4d", [3, 4, 23, 3], weights, progress, kwargs, groups=64, width_per_group=4)


def wide_resnet50_2(weights=None, progress=True, **kwargs):
    """ResNet-50 with 3x3 convolutions of twice the channels: 68,883,240 parameters. See `resnext50_32x4d`."""
    return _bottlenecks("wide_resnet50_2", [3, 4, 6, 3], weights, progress, kwargs, width_per_group=128)


def wide_resnet101_2(weights=None, progress=True, **kwargs):
    """ResNet-101 with 3x3 convolutions of twice the channels: 126,886,696 parameters. See `resnext50_32x4d`."""
    return _bottlenecks("wide_resnet101_2", [3, 4, 23, 3], weights, progress, kwargs, width_per_group=128)
