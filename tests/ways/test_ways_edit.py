"""Networks with a child that was replaced, by any door, or that is gone; layers that grew."""

import edits
import torch
from torch import nn
from ways import LIVE, Ways

ways = Ways()


def swap(role, make):
    """Replaces the part of a role by make(net)."""
    return lambda net: net.replace(role, make(net))


def swap_all(role, make):
    return lambda net: net.replace(role, make())


def conv(kernel=3, **changes):
    """A convolution like the network's, with other weights."""
    return lambda net: edits.conv_like(net.part("conv"), kernel, **changes).to(net.x.dtype)


def norm(make=nn.BatchNorm2d, **settings):
    def another(net):
        torch.manual_seed(7)
        new = make(net.part("norm").num_features, **settings).to(net.x.dtype).train(net.part("norm").training)
        nn.init.uniform_(new.weight, 0.4, 0.8)
        return new

    return another


def in_modules(net):
    parent, name = net.parent("conv")
    parent._modules[name] = conv()(net)


def deleted_and_added(net):
    parent, name = net.parent("norm")
    new, names = norm()(net), list(parent._modules)
    delattr(parent, name)
    parent.add_module(name, new)
    for later in names[names.index(name) + 1 :]:  # nn.Sequential runs its children in order
        parent._modules[later] = parent._modules.pop(later)


def registered(net):
    parent, name = net.parent("norm")
    parent.register_module(name, norm()(net))


def synchronised(net):
    net.model = nn.SyncBatchNorm.convert_sync_batchnorm(net.model)


def strided(net):
    bn = net.part("norm")
    for name in ("running_mean", "running_var"):
        setattr(bn, name, torch.stack([getattr(bn, name)] * 2, 1)[:, 0])


def with_bias(net):
    net.part("conv").bias = nn.Parameter(torch.ones(net.part("conv").out_channels, dtype=net.x.dtype))


def head(net):
    return nn.Linear(net.part("fc").in_features, 5, bias=False, dtype=net.x.dtype)


def with_dropout(net):
    return nn.Sequential(nn.Dropout(0.5), net.part("fc")).train(net.model.training)


def clipped():
    return nn.Hardtanh(0.0, 1.0)


OWN = "torch's own operator: not in a fused block"
# A network that was converted whole runs by its modules when a layer of it has other children.
GROWN = {"but": {kind: {"why": "other children"} for kind in ("torchvision", "timm", "somebody's")}}
# name: (roles, change, other fields of the way)
EDITS = {
    "a convolution replaced": (["conv"], swap("conv", conv()), {}),
    "a convolution replaced in _modules": (["conv"], in_modules, {}),
    "a norm deleted and added again": (
        ["norm"], deleted_and_added, {"but": {"sequence": {"why": "other children"}}},  # they stand in another order
    ),
    "a norm replaced by register_module": (["norm"], registered, {}),
    "a norm becomes InstanceNorm2d": (
        ["norm"], swap("norm", norm(nn.InstanceNorm2d, affine=True)), {"why": "InstanceNorm"},
    ),
    "a norm of another eps and momentum": (["norm"], swap("norm", norm(eps=0.1, momentum=None)), {}),
    "a norm without running statistics": (["norm"], swap("norm", norm(track_running_stats=False)), {}),
    "a norm with strided statistics": (["norm"], strided, {"why": "has values in strides of 2"}),
    "SyncBatchNorm in one process": (
        ["norm"], synchronised, {"why": "SyncBatchNorm", "but": {"ours": {"why": None}}},
    ),
    "a ReLU becomes LeakyReLU": (["relu"], swap_all("relu", nn.LeakyReLU), {"why": "LeakyReLU"}),
    "a ReLU becomes nn.Identity": (["relu"], swap_all("relu", nn.Identity), {"why": "Identity"}),
    "a ReLU becomes GELU": (["relu"], swap_all("relu", nn.GELU), {"why": "GELU"}),
    "a ReLU becomes ReLU6": (["relu"], swap_all("relu", nn.ReLU6), {"why": "ReLU6"}),
    "a ReLU out of place": (["relu"], swap_all("relu", nn.ReLU), {}),
    "a bias set afterwards": (["conv"], with_bias, {"why": "has a bias"}),
    "the head replaced": (["fc"], swap("fc", head), {}),
    "no head": (["fc"], swap_all("fc", nn.Identity), {}),
    "dropout before the head": (["fc"], swap("fc", with_dropout), {}),
    "an empty layer": (["layer", "pool"], swap_all("layer", nn.Sequential), {"kinds": LIVE}),
    "no layer": (["layer", "pool"], swap_all("layer", nn.Identity), {"kinds": LIVE}),
    "a layer without its block": (["layer"], lambda net: net.part("layer").__delitem__(0), GROWN),
    "a layer that grows": (["layer"], lambda net: net.part("layer").append(clipped()), GROWN),
    "a layer that grows in _modules": (
        ["layer"], lambda net: net.part("layer")._modules.__setitem__("more", clipped()), GROWN,
    ),
    "a layer that grows in front": (["layer"], lambda net: net.part("layer").insert(0, clipped()), GROWN),
    "a shortcut that grows": (
        ["shortcut", "pool"], lambda net: net.part("shortcut").append(clipped()), {"why": OWN},
    ),
    "no pool": (["pool"], swap_all("pool", nn.Identity), {"kinds": LIVE}),
    "another pool": (["pool"], swap("pool", lambda net: nn.AvgPool2d(2)), {"kinds": LIVE}),
    "a child that is None": (["norm"], swap("norm", lambda net: None), {}),
    "a child that is gone": (["norm"], lambda net: delattr(*net.parent("norm")), {}),
}  # fmt: skip
for _name, (_roles, _change, _fields) in EDITS.items():
    ways.edit(_name, _change, _roles, **_fields)


def of_a_block(change):
    return lambda net: (change(net.part("block")), net.model.to(net.x.dtype))


for _name, (_change, _why) in edits.EDITS.items():  # they are made for blocks of 128 channels
    _why = OWN if "resnet-d" in _name else _why
    # A program that runs step by step does not synchronise, and timm's blocks run so.
    _but = {"timm": {"why": "SyncBatchNorm"}} if _name == "SyncBatchNorm" else {}
    ways.edit(_name, of_a_block(_change), why=_why, but=_but, kinds=("ours", "torchvision", "converted late", "timm"))

test_edit = ways.test()
