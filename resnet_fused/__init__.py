"""ResNets on fused kernels: the same constructors, state dicts and numbers as torch, in fewer passes over memory."""

from . import ops
from .dispatch import backend, backends, strict
from .explain import explain
from .freeze import freeze
from .frozen_file import load_engine
from .memory import memory
from .resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "backend",
    "backends",
    "explain",
    "freeze",
    "load_engine",
    "memory",
    "ops",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "strict",
    "verify",
]
