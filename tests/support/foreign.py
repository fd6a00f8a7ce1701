"""Networks that somebody else wrote, small: torchvision's, timm's, and blocks that only look or are only called alike."""

import copy
import functools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision_shim import torchvision

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.oracle import with_lively_norms

timm = pytest.importorskip("timm")  # after the shim: timm imports torchvision

tv = torchvision.models
tv_resnet = tv.resnet
FrozenBatchNorm2d = torchvision.ops.misc.FrozenBatchNorm2d
timm_resnet = timm.models.resnet


def tv_net(block="BasicBlock", **kwargs):
    torch.manual_seed(0)
    return tv_resnet.ResNet(getattr(tv_resnet, block), [1, 1, 1, 1], num_classes=5, **kwargs)


def timm_net(block="BasicBlock", **kwargs):
    torch.manual_seed(0)
    kwargs = {"zero_init_last": False, **kwargs}
    return timm_resnet.ResNet(getattr(timm_resnet, block), (1, 1, 1, 1), num_classes=5, **kwargs)


def regnet(se_ratio=None):
    """Three blocks in two stages: `f` and `proj` are subclasses of nn.Sequential, the sum is written proj(x) + f(x)."""
    torch.manual_seed(0)
    params = tv.regnet.BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], se_ratio)
    return tv.regnet.RegNet(params, num_classes=5, stem_width=8)


def lively(build):
    model = with_lively_norms(build())
    for m in model.modules():
        if isinstance(m, FrozenBatchNorm2d):
            m.running_var.fill_(0.7), m.bias.fill_(0.1)
    return model.eval()


def run(model, x):
    """(output, backends and ops) with gradients off."""
    with torch.no_grad(), dispatch.record() as rows:
        out = model(x)
    return out, [(op, choice.backend) for op, _, choice in rows]


class Plain(nn.Module):
    """Somebody's CIFAR block: other names, functional ReLUs, a shortcut that is always there."""

    def __init__(self, inputs=8, outputs=8, stride=1):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_a = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.register_module("after", None)

    def forward(self, x):
        out = F.relu(self.norm_a(self.first(x)))
        out = self.norm_b(self.second(out))
        out += self.short(x)
        out = F.relu(out)
        return out if self.after is None else self.after(out)


class OutOfPlace(Plain):
    """The sum is written `a + b`, which promotes dtypes and broadcasts both ways."""

    def forward(self, x):
        out = F.relu(self.norm_a(self.first(x)))
        return torch.relu(self.short(x) + self.norm_b(self.second(out)))


class _Children(Plain):
    def __init__(self):
        super().__init__()
        self.calls, self.seen = [], 0
        self.register_buffer("scale", torch.tensor(0.5))


class BasicBlock(_Children):
    """Has the name of a residual block, and scales the residual."""

    def forward(self, x):
        out = F.relu(self.norm_a(self.first(x)))
        return F.relu(self.norm_b(self.second(out)) * self.scale + x)


class StochasticDepth(_Children):
    def forward(self, x):
        if self.training and torch.rand(1) < 0.5:
            return x
        return super().forward(x)


class PythonRandom(_Children):
    def forward(self, x):
        return x if random.random() < 0.5 else super().forward(x)


class DependsOnMode(_Children):
    def forward(self, x):
        return super().forward(x) if self.training else x


class SetsAttributes(_Children):
    def forward(self, x):
        self.seen = x.shape
        return super().forward(x)


class AppendsToList(_Children):
    def forward(self, x):
        out = super().forward(x)
        self.calls.append(out)
        return out


class DependsOnData(_Children):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class NormTwice(_Children):
    def forward(self, x):
        return F.relu(self.norm_a(self.second(F.relu(self.norm_a(self.first(x))))))


class TwoInputs(_Children):
    def forward(self, x, y):
        return super().forward(x) + y


IMPOSTORS = {
    StochasticDepth: "on something else than its input",
    PythonRandom: "draws random numbers",
    DependsOnMode: "depends on the mode",
    SetsAttributes: "sets its attribute seen",
    AppendsToList: "sets its attribute calls",
    DependsOnData: "cannot be traced",
    NormTwice: "uses a batch norm twice",
    TwoInputs: "takes more than one argument",
}


class Bystander(_Children):
    """Writes into its shortcut and keeps an intermediate: nothing that a fused op could leave out."""

    def forward(self, x):
        a = self.norm_a(self.first(x))
        b = self.norm_b(self.second(F.relu(a)))
        short = x * 1
        short += b
        return F.relu(short) + a


class CountsCalls(_Children):
    """Writes into a buffer of its own at every call."""

    def forward(self, x):
        self.scale.add_(1)
        return super().forward(x)


class ConvTwice(_Children):
    """The output of a convolution is seen by somebody else than the norm."""

    def forward(self, x):
        out = self.first(x)
        return F.relu(self.norm_a(out)) + out


class LateWriter(_Children):
    """Writes into its input after the convolution has read it: the convolution must not wait for the sum."""

    def __init__(self):
        super().__init__()
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm_a(self.first(x))
        out += self.inplace(x)
        return F.relu(out)


def shorten(model, classes=5):
    """Without its last two stages, which hold 94 % of the weights and nothing new."""
    torch.manual_seed(1)
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(128 * (model.fc.in_features // 512), classes)
    return model


@functools.cache
def _reference(network, block):
    return lively(lambda: shorten(network(block)))


@functools.cache
def _fused(holder, block):
    reference = _reference(timm_net if holder == "timm" else tv_net, block)
    if holder != "ours":
        return resnet_fused.convert(copy.deepcopy(reference), strict=True)
    model = shorten(resnet_fused.ResNet(getattr(resnet_fused, block), [1, 1, 1, 1])).eval()
    model.load_state_dict(reference.state_dict())
    return model


def fused_and_eager(holder, block="BasicBlock"):
    """(fused, eager) networks of the same weights in evaluation: "ours", or "torchvision" or "timm" converted."""
    return copy.deepcopy(_fused(holder, block)), copy.deepcopy(
        _reference(timm_net if holder == "timm" else tv_net, block)
    )


def outcome(model, x):
    out = model(x)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_same(ours, eager, tolerance=1e-3):
    """Outputs and gradients, each relative to its own size."""
    assert (ours[0] - eager[0]).norm() <= tolerance * eager[0].norm() and ours[0].dtype == eager[0].dtype
    assert ours[1].keys() == eager[1].keys()
    for name, grad in eager[1].items():
        assert (ours[1][name] is None) == (grad is None), name
        if grad is not None:
            assert (ours[1][name] - grad).norm() <= tolerance * grad.norm() + 1e-5, name
