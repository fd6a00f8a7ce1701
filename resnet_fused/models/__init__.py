"""The networks; they read like the paper. The tables name those that the command lines build."""

from .cifar import resnet20, resnet32, resnet44, resnet56, resnet110
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from .variants import resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2, wide_resnet101_2


def _by_name(*constructors):
    return {make.__name__: make for make in constructors}


MODELS = _by_name(
    resnet18, resnet34, resnet50, resnet101, resnet152,
    resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2, wide_resnet101_2,
)  # fmt: skip
CIFAR_MODELS = _by_name(resnet20, resnet32, resnet44, resnet56, resnet110)  # of 32x32 pixels
