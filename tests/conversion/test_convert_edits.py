"""Converted models that are edited afterwards run what their own forward would run now."""

import copy
import pickle

import pytest
import torch
from foreign import Plain, lively, run, timm_net, tv_net
from nets import fused_sites
from torch import nn
from torch.nn.utils import prune

from resnet_fused import convert, unconvert


class Squeeze(nn.Module):
    def forward(self, x):
        return x * 0.5


EDITS = {
    "hook": (lambda b: b.conv1.register_forward_hook(lambda *a: None), "conv1 carries a hook"),
    "child": (lambda b: setattr(b, "bn2", nn.GroupNorm(2, 64)), None),
    "child-behind": (lambda b: b._modules.update(bn2=nn.Identity()), "bn2 is a Identity"),
    "new-shortcut": (lambda b: setattr(b, "downsample", Squeeze()), None),
    "new-attention": (lambda b: setattr(b, "se", Squeeze()), None),
    "no-activation": (lambda b: setattr(b, "act2", nn.Identity()), None),
    "pruned": (lambda b: prune.l1_unstructured(b.conv2, "weight", 0.5), "conv2 carries a hook"),
    "weight-norm": (lambda b: nn.utils.parametrizations.weight_norm(b.conv2), "conv2 is a Parametrized"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_after_the_conversion(edit):
    """Forward of the original class asks for its attributes at every call; a fused one must not know better."""
    change, reason = EDITS[edit]
    model = lively(timm_net)
    block, h = model.layer1[0], torch.randn(2, 64, 10, 10)
    convert(model)
    change(block)
    if reason is not None:
        assert reason in block.why_not_fused(h)
    with torch.no_grad():
        out = block(h)
        torch.testing.assert_close(out, copy.deepcopy(unconvert(block))(h), rtol=1e-4, atol=1e-5)


def test_a_child_that_was_none():
    block, h = convert(lively(Plain)), torch.randn(2, 8, 9, 9)
    assert block.why_not_fused(h) is None
    block._modules["after"] = Squeeze()  # behind the back of __setattr__
    assert block.why_not_fused(h) == "after was None when the module was converted"
    behind = run(block, h)[0]
    block.after = None
    block.after = Squeeze()
    assert block.why_not_fused(h) is None
    torch.testing.assert_close(run(block, h)[0], behind)


def test_an_edit_that_allows_no_plan_and_back():
    block, h = convert(lively(Plain)), torch.randn(2, 8, 9, 9)
    expected, _ = run(block, h)
    short, block.short = block.short, None
    assert "cannot be traced (TypeError" in block.why_not_fused(h)
    assert pickle.loads(pickle.dumps(block)).why_not_fused(h)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        block(h)
    block.short = short
    out, rows = run(block, h)
    assert torch.equal(out, expected) and rows
    del block.first
    with pytest.raises(AttributeError, match="first"):
        block(h)


@pytest.mark.parametrize("first", ["convert", "synchronise"])
def test_synchronised_batch_norms(first):
    """One process: torchvision's blocks take our forward, which can synchronise; timm's norms run by themselves."""
    for net, sites in ((tv_net, 12), (timm_net, 4)):
        reference, x = lively(net), torch.randn(2, 3, 40, 40)
        model = copy.deepcopy(reference)
        steps = [convert, nn.SyncBatchNorm.convert_sync_batchnorm]
        for step in steps if first == "convert" else reversed(steps):
            model = step(model)
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        out, rows = run(model, x)
        assert fused_sites(rows) == sites
        torch.testing.assert_close(out, run(reference, x)[0], rtol=1e-4, atol=1e-4)
        for m in (model, reference):
            m.train()(x).square().sum().backward()
        torch.testing.assert_close(model.bn1.running_var, reference.bn1.running_var)
        ours, eager = model.conv1.weight.grad, reference.conv1.weight.grad
        assert (ours - eager).norm() <= 5e-3 * eager.norm()
