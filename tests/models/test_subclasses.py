"""Subclasses that override methods which torchvision has too: what they override is called, as in torchvision."""

import pytest
import torch
from foreign import lively, tv_resnet

import resnet_fused

X = (2, 3, 40, 40)


def without_head(base):
    class Features(base):
        def _forward_impl(self, x):
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    return Features


def shorter(base):
    class Shorter(base):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            return super()._make_layer(block, planes, blocks - 1, stride, dilate)

    return Shorter


def around(base):
    class Around(base):
        def forward(self, x):
            return super().forward(x) * 2

    return Around


def own_block(base):
    class Halved(base):
        def forward(self, x):
            return super().forward(x) * 0.5

    return Halved


NETS = {"forward_impl": without_head, "make_layer": shorter, "forward": around}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", [*NETS, "block"])
def test_what_a_subclass_overrides(name, training):
    models = []
    for package in (tv_resnet, resnet_fused):
        torch.manual_seed(0)
        net, block = package.ResNet, package.BasicBlock
        net, block = (net, own_block(block)) if name == "block" else (NETS[name](net), block)
        models.append(lively(lambda net=net, block=block: net(block, [2, 2, 2, 2], num_classes=5)).train(training))
    theirs, ours = models
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(X)
    a, b = ours(x), theirs(x)
    assert (a - b).norm() <= 1e-3 * b.norm() and a.shape == b.shape


def test_forward_impl_of_one_network():
    model, x = resnet_fused.resnet20().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model._forward_impl(x))
        model._forward_impl = lambda x: model.layer1(model.bn1(model.conv1(x)))
        assert model(x).shape == (1, 16, 32, 32)


def doubled(base, method):
    def twice(self, *args):
        return 2 * getattr(super(Derived, self), method)(*args)

    Derived = type("Derived", (base,), {method: twice})
    return Derived


@torch.no_grad()
def test_a_class_derived_from_a_converted_one():
    """What it overrides is called, although the instance was converted before; other names of its own change nothing."""
    x = torch.randn(X)
    model = resnet_fused.convert(lively(lambda: tv_resnet.resnet18()))
    expected = model(x)
    model.__class__ = type("Named", (type(model),), {"something": 1})
    assert torch.equal(model(x), expected) and model.why_not_fused(x) is None
    model.__class__ = doubled(type(model), "_forward_impl")
    torch.testing.assert_close(model(x), 2 * expected)
    assert "Derived overrides _forward_impl" in str(resnet_fused.explain(model, x))
