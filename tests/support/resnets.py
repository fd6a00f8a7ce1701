"""Our ResNets for the tests: small ones, and pairs with torchvision's."""

import torch
from torch import nn
from torchvision_shim import torchvision

import resnet_fused


def pair(name="resnet18", seed=0, **kwargs):
    """(ours, torchvision's) from the same seed, with batch-norm parameters and statistics that are not 1 and 0."""
    torch.manual_seed(seed)
    ours = getattr(resnet_fused, name)(**kwargs)
    generator = torch.Generator().manual_seed(seed)
    for m in ours.modules():
        if isinstance(m, nn.BatchNorm2d) and m.weight is not None:
            m.weight.data.uniform_(0.5, 1.0, generator=generator)
            m.bias.data.normal_(0.0, 0.2, generator=generator)
            m.running_mean.normal_(0.0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
    theirs = getattr(torchvision.models, name)(**kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def narrow(shortcut="projection", block=resnet_fused.BasicBlock, **kwargs):
    """A two-block-per-stage network small enough for an interpreter."""
    torch.manual_seed(0)
    model = resnet_fused.ResNet(block, [1, 1, 1, 1], num_classes=5, shortcut=shortcut, **kwargs)
    return model
