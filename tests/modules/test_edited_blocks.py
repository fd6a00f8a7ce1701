"""Norms of every kind in the constructor: values and gradients as in eager. Blocks that are edited: tests/ways."""

import functools

import pytest
import torch
from foreign import FrozenBatchNorm2d, assert_same, lively, outcome, shorten, tv_net
from torch import nn

import resnet_fused
from resnet_fused import dispatch

X = (2, 3, 32, 32)


NORMS = {
    "group": functools.partial(nn.GroupNorm, 4),
    "instance": functools.partial(nn.InstanceNorm2d, affine=True),
    "sync": nn.SyncBatchNorm,
    "frozen": FrozenBatchNorm2d,
    "eps": functools.partial(nn.BatchNorm2d, eps=0.01),
    "no-statistics": functools.partial(nn.BatchNorm2d, track_running_stats=False),
    "average": functools.partial(nn.BatchNorm2d, momentum=None),
}
FUSED_NORMS = {"sync", "frozen", "eps", "no-statistics", "average"}


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
