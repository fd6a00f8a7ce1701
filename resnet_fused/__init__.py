"""ResNets on fused kernels: the same constructors, state dicts and numbers as torch, in fewer passes over memory."""

from . import nn, ops
from .conversion.convert import convert, unconvert
from .dispatch import backend, backends, strict
from .frozen.freeze import freeze, load_engine
from .kernels.library import warn_of_absence as _warn_of_absence
from .models.cifar import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from .models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from .models.variants import resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2, wide_resnet101_2
from .ops.decompositions import decompositions
from .reports.explain import explain
from .reports.memory import memory
from .reports.verify.verify import verify
from .version import __version__ as __version__

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ResNet",
    "backend",
    "backends",
    "convert",
    "decompositions",
    "explain",
    "freeze",
    "load_engine",
    "memory",
    "nn",
    "ops",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "strict",
    "unconvert",
    "verify",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_warn_of_absence()
