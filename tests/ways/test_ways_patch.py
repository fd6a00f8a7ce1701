"""Classes and functions of torch that somebody replaced, for all modules or for one: before, during and after."""

import types
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from ways import Ways

ways = Ways()
CONVERTED = ("torchvision", "converted late", "somebody's", "sequence")  # whose own forward calls it
PATCHED = "replaced|carries a hook|of its own"


def patched(owner, name, change, **fields):
    """Adds the way in which `owner.name` is replaced by change(real) for one of three calls."""

    def act(net):
        net.step()
        with mock.patch.object(owner, name, change(getattr(owner, name))):
            net.step()
        net.step()

    where = owner.__name__.rpartition(".")[2]
    ways(act, name=f"{where}.{name} replaced", **{"why": PATCHED, **fields})


def scaled(real):
    return lambda *args, **kwargs: real(*args, **kwargs) * 1.25


@ways
def nothing(net):
    net.step()


patched(nn.BatchNorm2d, "forward", scaled)
patched(nn.modules.batchnorm._BatchNorm, "forward", scaled)
patched(nn.Conv2d, "forward", scaled)
patched(nn.Conv2d, "_conv_forward", scaled)
patched(nn.ReLU, "forward", scaled, needs=("relu",))
patched(
    nn.Module, "__call__", lambda real: lambda self, *args: real(self, *args) * (1 + 0.1 * isinstance(self, nn.Conv2d))
)
patched(
    nn.Module, "_call_impl",
    lambda real: lambda self, *args: real(self, *args) * (1 + 0.1 * isinstance(self, nn.BatchNorm2d)),
)  # fmt: skip
patched(nn.Sequential, "forward", scaled)
patched(F, "batch_norm", scaled)
patched(F, "conv2d", scaled)
patched(F, "relu", scaled)
patched(torch, "batch_norm", scaled)
patched(nn.Linear, "forward", scaled, why=None)
patched(F, "linear", scaled, why=None)
patched(nn.MaxPool2d, "forward", scaled, needs=("pool",))
patched(F, "max_pool2d", scaled, needs=("pool",))
patched(nn.AdaptiveAvgPool2d, "forward", scaled, why=None)
patched(torch, "flatten", scaled, why=None, but={kind: {"why": PATCHED} for kind in (*CONVERTED, "timm")})


def on_instance(role, name="forward", **fields):
    def act(net):
        net.step()
        part = net.part(role)
        real = getattr(part, name)
        setattr(part, name, types.MethodType(lambda self, *args: real(*args) * 1.25, part))
        net.step()
        delattr(part, name)
        net.step()

    ways(act, name=f"{name} of one {role} replaced", **{"why": PATCHED, "needs": (role,), **fields})


for _role in ("conv", "norm", "relu", "stem", "stem norm"):
    on_instance(_role)
on_instance("shortcut", but={"of our modules": {"why": None}})  # there it is a module that is called
for _role in ("block", "layer", "network", "fc", "pool"):
    on_instance(_role, why=None)
on_instance("conv", "_conv_forward")


@ways(why="not exactly nn.BatchNorm2d", needs=("norm",))
def forward_of_one_norm_set_by_its_class(net):
    """As test-time adaptation does it."""
    net.step()
    norm = net.part("norm")
    norm.__class__ = type(
        "Adapted", (nn.BatchNorm2d,), {"forward": lambda self, x: nn.BatchNorm2d.forward(self, x) * 1.25}
    )
    net.step()


@ways(needs=("norm",))
def train_of_one_norm_replaced(net):
    net.part("norm").train = lambda mode=True: net.part("norm")
    net.model.eval(), net.model.train(net.mode == "training")
    net.step()


@ways
def patched_and_restored_before(net):
    for owner, name in ((nn.BatchNorm2d, "forward"), (F, "conv2d")):
        with mock.patch.object(owner, name, scaled(getattr(owner, name))):
            pass
    net.step()


test_patch = ways.test()
