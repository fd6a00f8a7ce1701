"""freeze() of networks whose head or layers were replaced: the network as it is, or one line that names the part."""

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
    "fc without bias": lambda m: setattr(m, "fc", nn.Linear(512, 3, bias=False)),
    "no last layer": without("layer4", 256),
    "no pool at the end": lambda m: (setattr(m, "avgpool", nn.Identity()), setattr(m, "fc", nn.Linear(512 * 4, 3))),
    "another pool at the end": lambda m: (setattr(m, "avgpool", nn.MaxPool2d(2)), setattr(m, "fc", nn.Linear(512, 3))),
}  # fmt: skip
REFUSED = {
    "no fc": (lambda m: setattr(m, "fc", nn.Identity()), "fc computes Identity, not one nn.Linear"),
    "two layers in fc": (
        lambda m: setattr(m, "fc", nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3))),
        "fc computes Linear, ReLU, Linear, not one nn.Linear",
    ),
    "a layer of another kind": (
        lambda m: setattr(m, "layer4", nn.Conv2d(256, 512, 1)),
        "layer4 is a Conv2d, not a sequence of blocks",
    ),
    "a block of another kind": (
        lambda m: m.layer4.append(nn.Dropout2d()),
        "layer4.1 is a Dropout2d, not a BasicBlock or Bottleneck",
    ),
    "a norm that is gone": (lambda m: setattr(m.layer2[0], "bn1", nn.Identity()), "layer2.0.conv1 is a Identity, not"),
    "no fc attribute": (lambda m: delattr(m, "fc"), "is not a ResNet: it has no fc"),
}


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
    with torch.no_grad():
        next(m for m in model.fc.modules() if isinstance(m, nn.Linear)).weight.mul_(2)
    engine.refresh()
    torch.testing.assert_close(engine(x), model(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edit", REFUSED)
def test_one_line_names_what_cannot_be_frozen(edit):
    model = narrow().eval()
    change, message = REFUSED[edit]
    change(model)
    with pytest.raises(TypeError) as caught:
        resnet_fused.freeze(model, torch.randn(1, 3, 64, 64))
    assert str(caught.value).startswith("freeze: ") and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_that_the_forward_leaves_out():
    class Shallow(resnet_fused.ResNet):
        def forward(self, x):
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            return self.fc(torch.flatten(self.avgpool(self.layer3(self.layer2(self.layer1(x)))), 1))

    model = Shallow(resnet_fused.BasicBlock, [1, 1, 1, 1]).eval()
    model.fc = nn.Linear(256, 3)
    with pytest.raises(ValueError, match="freeze: the forward of Shallow does not call layer4"):
        resnet_fused.freeze(model, torch.randn(1, 3, 64, 64))
