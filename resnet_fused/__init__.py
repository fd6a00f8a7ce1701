"""ResNets on fused kernels: the same constructors, state dicts and numbers as torch, in fewer passes over memory."""

from . import nn, ops
from .cifar import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from .convert import convert, unconvert
from .dispatch import backend, backends, strict
from .explain import explain
from .export import decompositions
from .freeze import freeze
from .frozen_file import load_engine
from .memory import memory
from .resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from .verify import verify

__version__ = "0.1.0"

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
    "strict",
    "unconvert",
    "verify",
]
