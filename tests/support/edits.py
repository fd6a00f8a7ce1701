"""What people do to the children of a residual block (of stride 2, 64 to 128 channels, with a projection)."""

import warnings

import torch
from foreign import FrozenBatchNorm2d
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


class LoRA(nn.Module):
    """A frozen convolution and a trainable detour of low rank beside it."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv.requires_grad_(False)
        torch.manual_seed(0)
        self.down = nn.Conv2d(conv.in_channels, 4, 3, conv.stride, 1, bias=False)
        self.up = nn.Conv2d(4, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


def conv_like(conv, kernel=3, **changes):
    torch.manual_seed(0)
    arguments = {"stride": conv.stride, "padding": conv.padding, "bias": False, **changes}
    return nn.Conv2d(conv.in_channels, conv.out_channels, kernel, **arguments)


def spectral(conv):
    torch.manual_seed(0)
    return parametrizations.spectral_norm(conv)


def old_weight_norm(conv):
    return nn.utils.weight_norm(conv)


# What is done to layer2.0 (conv1 has stride 2), and what its reason says.
EDITS = {
    "pruned convolution": (lambda b: prune.l1_unstructured(b.conv1, "weight", 0.5), "conv1 carries a hook"),
    "pruned norm": (lambda b: prune.random_unstructured(b.bn1, "weight", 0), "bn1 carries a hook"),
    "pruned for good (`prune.remove`)": (
        lambda b: prune.remove(prune.l1_unstructured(b.conv1, "weight", 0.5), "weight"), None,
    ),
    "parametrized convolution": (
        lambda b: parametrize.register_parametrization(b.conv2, "weight", Doubled()), "conv2 is a Parametrized",
    ),
    "`parametrizations.weight_norm`": (lambda b: parametrizations.weight_norm(b.conv2), "conv2 is a Parametrized"),
    "`nn.utils.weight_norm`": (lambda b: old_weight_norm(b.conv2), "conv2 carries a hook"),
    "`parametrizations.spectral_norm`": (lambda b: spectral(b.conv1), "conv1 is a Parametrized"),
    "LoRA around a convolution": (lambda b: setattr(b, "conv2", LoRA(b.conv2)), "conv2 is a LoRA"),
    "convolution with a bias": (lambda b: setattr(b, "conv2", conv_like(b.conv2, bias=True)), "conv2 has a bias"),
    "`padding='same'`": (lambda b: setattr(b, "conv2", conv_like(b.conv2, padding="same")), "conv2 has padding 'same'"),
    "`padding_mode='reflect'`": (
        lambda b: setattr(b, "conv2", conv_like(b.conv2, padding_mode="reflect")), "padding_mode 'reflect'",
    ),
    "`padding_mode='circular'`": (
        lambda b: setattr(b, "conv2", conv_like(b.conv2, padding_mode="circular")), "padding_mode 'circular'",
    ),
    "GroupNorm": (lambda b: setattr(b, "bn1", nn.GroupNorm(4, 128)), "bn1 is a GroupNorm"),
    "SyncBatchNorm": (lambda b: setattr(b, "bn1", nn.SyncBatchNorm(128)), None),
    "Identity instead of a norm": (lambda b: setattr(b, "bn2", nn.Identity()), "bn2 is a Identity"),
    "torchvision's FrozenBatchNorm2d": (lambda b: setattr(b, "bn2", FrozenBatchNorm2d(128)), None),
    "`conv.forward` patched": (
        lambda b: setattr(b.conv1, "forward", lambda x: nn.Conv2d.forward(b.conv1, x) * 2), "conv1 carries a hook",
    ),
    "another kernel size": (lambda b: setattr(b, "conv2", conv_like(b.conv2, kernel=1, padding=0)), None),
    "a grouped convolution": (lambda b: setattr(b, "conv2", conv_like(b.conv2, groups=4)), None),
    "average pool in the shortcut (resnet-d)": (
        lambda b: b.downsample.insert(0, nn.AvgPool2d(1)) if len(b.downsample) == 2 else None, None,
    ),
}  # fmt: skip


def lightly(change, block):
    """Without torch's warnings about what is deprecated: people still do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(block)
