"""freeze() of networks whose head or layers were replaced."""

import copy

import pytest
import torch
from foreign import tv_net
from resnets import narrow
from torch import nn

import resnet_fused
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules, with_lively_norms


def without(name, channels):
    def edit(model):
        setattr(model, name, nn.Identity())
        model.fc = nn.Linear(channels, 5)

    return edit


FROZEN = {
    "dropout before fc": lambda m: setattr(m, "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 3))),
    "nested": lambda m: setattr(m, "fc", nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(512, 3)), nn.Dropout())),
    "no fc": lambda m: setattr(m, "fc", nn.Identity()),
    "two layers in fc": lambda m: setattr(m, "fc", nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3))),
    "a layer of another kind": lambda m: setattr(m, "layer4", nn.Conv2d(256, 512, 1)),
    "a norm that is gone": lambda m: setattr(m.layer2[0], "bn1", nn.Identity()),
    "fc without bias": lambda m: setattr(m, "fc", nn.Linear(512, 3, bias=False)),
    "no last layer": without("layer4", 256),
    "no pool at the end": lambda m: (setattr(m, "avgpool", nn.Identity()), setattr(m, "fc", nn.Linear(512 * 4, 3))),
    "another pool at the end": lambda m: (setattr(m, "avgpool", nn.MaxPool2d(2)), setattr(m, "fc", nn.Linear(512, 3))),
}  # fmt: skip


@pytest.mark.parametrize("make", [narrow, tv_net])
@pytest.mark.parametrize("edit", FROZEN)
def test_a_frozen_network(make, edit):
    model, x = make(), torch.randn(2, 3, 64, 64)
    FROZEN[edit](model)
    model = with_lively_norms(model).eval()
    with torch.no_grad():
        eager, oracle = by_modules(model)(x), by_modules(copy.deepcopy(model)).double()(x.double())
    for engine in (resnet_fused.freeze(model, x), freeze_gpu(model, x, graph=False)):
        assert_within_budget(engine(x), eager, oracle, "logits", channel_dim=None)
        torch.testing.assert_close(engine.module()(x), eager, rtol=1e-4, atol=1e-4)


def test_a_layer_that_the_forward_leaves_out():
    class Shallow(resnet_fused.ResNet):
        def forward(self, x):
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            return self.fc(torch.flatten(self.avgpool(self.layer3(self.layer2(self.layer1(x)))), 1))

    model = Shallow(resnet_fused.BasicBlock, [1, 1, 1, 1]).eval()
    model.fc = nn.Linear(256, 3)
    model, x = with_lively_norms(model), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(resnet_fused.freeze(model, x)(x), model(x), rtol=1e-4, atol=1e-4)
