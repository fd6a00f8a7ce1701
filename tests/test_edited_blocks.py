"""Children that are pruned, parametrized, wrapped or replaced, and norms of every kind: values and gradients as in eager."""

import functools

import pytest
import torch
from foreign import FrozenBatchNorm2d, assert_same, fused_and_eager, lively, outcome, shorten, tv_net
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import resnet_fused
from resnet_fused import dispatch

X = (2, 3, 32, 32)
HOLDERS = pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])


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
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(conv)


# What is done to layer2.0 (conv1 has stride 2), and what its reason says.
EDITS = {
    "pruned": (lambda b: prune.l1_unstructured(b.conv1, "weight", 0.5), "conv1 carries a hook"),
    "pruned-norm": (lambda b: prune.random_unstructured(b.bn1, "weight", 0), "bn1 carries a hook"),
    "pruned-removed": (
        lambda b: prune.remove(prune.l1_unstructured(b.conv1, "weight", 0.5), "weight"), None,
    ),
    "parametrized": (
        lambda b: parametrize.register_parametrization(b.conv2, "weight", Doubled()), "conv2 is a Parametrized",
    ),
    "weight-norm": (lambda b: parametrizations.weight_norm(b.conv2), "conv2 is a Parametrized"),
    "old-weight-norm": (lambda b: old_weight_norm(b.conv2), "conv2 carries a hook"),
    "spectral-norm": (lambda b: spectral(b.conv1), "conv1 is a Parametrized"),
    "lora": (lambda b: setattr(b, "conv2", LoRA(b.conv2)), "conv2 is a LoRA"),
    "bias": (lambda b: setattr(b, "conv2", conv_like(b.conv2, bias=True)), "conv2 has a bias"),
    "same": (lambda b: setattr(b, "conv2", conv_like(b.conv2, padding="same")), "conv2 has padding 'same'"),
    "reflect": (lambda b: setattr(b, "conv2", conv_like(b.conv2, padding_mode="reflect")), "padding_mode 'reflect'"),
    "circular": (lambda b: setattr(b, "conv2", conv_like(b.conv2, padding_mode="circular")), "padding_mode 'circular'"),
    "group-norm": (lambda b: setattr(b, "bn1", nn.GroupNorm(4, 128)), "bn1 is a GroupNorm"),
    "sync-bn": (lambda b: setattr(b, "bn1", nn.SyncBatchNorm(128)), "bn1 is a SyncBatchNorm"),
    "identity": (lambda b: setattr(b, "bn2", nn.Identity()), "bn2 is a Identity"),
    "frozen-bn": (lambda b: setattr(b, "bn2", FrozenBatchNorm2d(128)), None),
    "patched": (lambda b: setattr(b.conv1, "forward", lambda x: nn.Conv2d.forward(b.conv1, x) * 2), "conv1 carries a hook"),
    "one-by-one": (lambda b: setattr(b, "conv2", conv_like(b.conv2, kernel=1, padding=0)), None),
    "grouped": (lambda b: setattr(b, "conv2", conv_like(b.conv2, groups=4)), None),
    "shortcut-pooled": (
        lambda b: b.downsample.insert(0, nn.AvgPool2d(1)) if len(b.downsample) == 2 else None, None,
    ),
}  # fmt: skip


@HOLDERS
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_edited_blocks(edit, training, holder):
    change, reason = EDITS[edit]
    model, reference = fused_and_eager(holder)
    for m in (model, reference):
        m.train(training)
        change(m.layer2[0])
    h = torch.randn(1, 64, 8, 8)
    if holder == "ours" and reason is not None:
        assert reason in model.layer2[0].why_not_fused(h)
    if reason is None and holder == "ours":
        assert model.layer2[0].why_not_fused(h) is None
    x = torch.randn(X)
    assert_same(outcome(model, x), outcome(reference, x), 5e-3 if training else 1e-3)


NORMS = {
    "group": functools.partial(nn.GroupNorm, 4),
    "instance": functools.partial(nn.InstanceNorm2d, affine=True),
    "sync": nn.SyncBatchNorm,
    "frozen": FrozenBatchNorm2d,
    "eps": functools.partial(nn.BatchNorm2d, eps=0.01),
    "no-statistics": functools.partial(nn.BatchNorm2d, track_running_stats=False),
    "average": functools.partial(nn.BatchNorm2d, momentum=None),
}
FUSED_NORMS = {"frozen", "eps", "no-statistics", "average"}


@pytest.mark.parametrize("norm", NORMS)
def test_norm_layers(norm):
    reference, model = (lively(lambda net=net: shorten(net(norm_layer=NORMS[norm]))) for net in (tv_net, narrow_ours))
    model.load_state_dict(reference.state_dict())
    x = torch.randn(X)
    with dispatch.record() as rows:
        ours = outcome(model, x)
    assert bool(rows) == (norm in FUSED_NORMS)
    assert_same(ours, outcome(reference, x))


def narrow_ours(**kwargs):
    return resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5, **kwargs)


def test_a_norm_without_weights_fails_in_both_constructors():
    errors = []
    for net in (tv_net, narrow_ours):
        with pytest.raises(Exception) as caught:
            net(norm_layer=functools.partial(nn.BatchNorm2d, affine=False))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
