"""torch's own classes and functions replaced for all modules, or methods of one module: nothing fused bypasses them."""

import functools
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from foreign import FrozenBatchNorm2d, lively, run, timm, tv_net, tv_resnet
from torch import nn

import resnet_fused
from resnet_fused import convert, dispatch, explain, freeze
from resnet_fused.modules import torchs_own

OWNERS = {"nn": nn, "F": F, "torch": torch}


def place(name):
    """(object, attribute) of a name such as "nn.Conv2d.forward"."""
    first, *between, last = name.split(".")
    owner = OWNERS[first]
    for part in between:
        owner = getattr(owner, part)
    return owner, last


@pytest.mark.parametrize("name", torchs_own.NAMES)
def test_every_replacement_is_noticed(name, monkeypatch):
    owner, attribute = place(name)
    block, x = resnet_fused.BasicBlock(8, 8).eval(), torch.randn(1, 8, 6, 6)
    assert block.why_not_fused(x) is None
    monkeypatch.setattr(owner, attribute, lambda *args, **kwargs: getattr(owner, attribute)(*args, **kwargs))
    assert block.why_not_fused(x) == f"{name} was replaced"
    monkeypatch.undo()
    assert block.why_not_fused(x) is None


def test_it_is_asked_once_as_torch_marks_it():
    def ours():
        return None

    def theirs():
        return None

    torchs_own.asked_once(ours), torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}


def test_what_was_replaced_before_the_import(monkeypatch):
    """The replacement is not taken for torch's own function, whatever functools.wraps has copied."""
    before = functools.wraps(nn.Conv2d.forward)(lambda self, x: x)
    monkeypatch.setattr(nn.Conv2d, "forward", before)
    again = importlib.util.module_from_spec(importlib.util.find_spec(torchs_own.__name__))
    again.__spec__.loader.exec_module(again)
    assert again.why_not_torchs_own() == "nn.Conv2d.forward was replaced"


def adapted(self, x):
    """Half the statistics of training, half those of this batch."""
    seen = x.detach()
    mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3), unbiased=False)
    mean, var = (self.running_mean + mean) / 2, (self.running_var + var) / 2
    return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0, self.eps)


def standardised(self, x, weight, bias):
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def doubled(function):
    return lambda *args, **kwargs: function(*args, **kwargs) * 2


REPLACED = {
    "nn.BatchNorm2d.forward": adapted,
    "nn.modules.batchnorm._BatchNorm.forward": adapted,
    "nn.Conv2d._conv_forward": standardised,
    "nn.ReLU.forward": lambda self, x: F.leaky_relu(x, 0.2),
    "nn.Module.__call__": doubled(nn.Module.__call__),
    "F.conv2d": doubled(F.conv2d),
    "F.batch_norm": doubled(F.batch_norm),
    "F.relu": lambda x, inplace=False: F.leaky_relu(x, 0.2),
}


def ours(reference):
    model = resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
    model.load_state_dict(reference.state_dict())
    return model


class OwnModules(nn.Module):
    """The modules of `resnet_fused.nn`, and the same in torch's."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        torch.manual_seed(0)
        self.first, self.second = resnet_fused.nn.ConvBNReLU(3, 8, 3), resnet_fused.nn.BNReLU(8)

    def forward(self, x):
        if self.fused:
            return self.second(self.first(x))
        first, second = self.first, self.second
        return second.relu(second.bn(first.relu(first.bn(first.conv(x)))))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", REPLACED)
def test_a_replacement_runs_everywhere(name, training, monkeypatch):
    """Our networks, converted ones and the modules of `resnet_fused.nn` compute what eager does then."""
    x = torch.randn(2, 3, 40, 40)
    pairs = [(ours(lively(tv_net)), lively(tv_net)), (convert(lively(tv_net)), lively(tv_net))]
    if name != "nn.Module.__call__":  # there are two modules more in ours
        pairs.append((lively(lambda: OwnModules(True)), lively(lambda: OwnModules(False))))
    monkeypatch.setattr(*place(name), REPLACED[name])
    for model, eager in pairs:
        with dispatch.record() as rows:
            out, expected = model.train(training)(x), eager.train(training)(x)
        assert not rows
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_the_reason_and_freeze(monkeypatch):
    model, x = ours(lively(tv_net)), torch.randn(1, 3, 40, 40)
    engine = freeze(model, x)
    expected = engine(x)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", adapted)
    reasons = {row["reason"] for row in explain(model, x).rows if row["backend"] == "modules"}
    assert reasons == {"nn.BatchNorm2d.forward was replaced"}
    with pytest.raises(TypeError, match=r"freeze: nn\.BatchNorm2d\.forward was replaced"):
        freeze(model, x)
    assert torch.equal(engine(x), expected), "an engine is a snapshot"


def circular(conv):
    def forward(x, weight, bias):
        p = conv.padding[0]
        x = F.pad(x, (p, p, p, p), mode="circular") if p else x
        return F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    return forward


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_convolution_that_pads_in_its_own_way(training):
    reference, x = lively(tv_net), torch.randn(2, 3, 40, 40)
    fused = [ours(reference), convert(lively(tv_net))]
    for model in (reference, *fused):
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            conv._conv_forward = circular(conv)
    expected = reference.train(training)(x)
    for model in fused:
        torch.testing.assert_close(model.train(training)(x), expected, rtol=1e-4, atol=1e-4)
        assert model.layer1[0].why_not_fused(torch.randn(1, 64, 8, 8)) == "conv1 has a _conv_forward of its own"
    torch.testing.assert_close(freeze(fused[0], x)(x), fused[0].eval()(x), rtol=1e-3, atol=1e-3)


def test_a_call_of_one_module():
    block, x = resnet_fused.BasicBlock(8, 8).eval(), torch.randn(1, 8, 6, 6)
    block.relu._call_impl = lambda x: x
    assert block.why_not_fused(x) == "relu carries a hook"


@pytest.mark.parametrize("cls", [FrozenBatchNorm2d, timm.layers.BatchNormAct2d], ids=lambda cls: cls.__name__)
def test_norms_of_other_packages(cls, monkeypatch):
    block, x = tv_resnet.BasicBlock(8, 8, norm_layer=cls).eval(), torch.randn(1, 8, 6, 6)
    block.bn1.running_var.fill_(0.7)
    convert(block)
    _, rows = run(block, x)
    monkeypatch.setattr(cls, "forward", lambda self, x: x * 3)
    out, replaced = run(block, x)
    assert rows and not replaced
    assert torch.equal(out, tv_resnet.BasicBlock.forward(block, x))
