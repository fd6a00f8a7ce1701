"""Networks for the engine in e4m3."""

import torch
from resnets import narrow

import resnet_fused
from resnet_fused import freeze
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.cifar import CifarResNet


def net(kind, device="cpu"):
    """Networks of two or three blocks: float64 convolutions of wide layers take a second each."""
    if kind == "zero_pad":
        return with_lively_norms(CifarResNet(1, num_classes=5)).eval().to(device)
    block = resnet_fused.BasicBlock if kind in ("basic", "identity-pool") else resnet_fused.Bottleneck
    model = narrow(block=block, **({"groups": 2, "width_per_group": 32} if kind == "groups" else {}))
    if kind == "identity-pool":
        model.maxpool = torch.nn.Identity()
    model.layer3, model.layer4 = torch.nn.Sequential(), torch.nn.Sequential()
    model.fc = torch.nn.Linear(128 * block.expansion, 5)
    return with_lively_norms(model).eval().to(device)


def frozen(model, x, **kwargs):
    return freeze(model, x, dtype="fp8", graph=x.device.type == "cuda", **kwargs)
