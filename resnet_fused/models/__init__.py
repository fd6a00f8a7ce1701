"""The networks; they read like the paper. The tables name those that the command lines build."""

from .cifar import resnet20, resnet32, resnet44, resnet56, resnet110
from .resnet import resnet18, resnet34, resnet50, resnet101, resnet152

MODELS = {make.__name__: make for make in (resnet18, resnet34, resnet50, resnet101, resnet152)}
CIFAR_MODELS = {make.__name__: make for make in (resnet20, resnet32, resnet44, resnet56, resnet110)}  # of 32x32 pixels
