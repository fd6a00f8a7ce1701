"""The networks that people have, small: what of them is fused in evaluation and in training, and that they freeze."""

import copy

import pytest
import torch
from foreign import lively, run
from nets import NETS, fused_sites
from torch import nn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.measure.accuracy import budget_used
from resnet_fused.measure.oracle import by_modules
from resnet_fused.modules.norms import is_frozen

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
# Networks without a norm that is fused: their sums and ReLUs are.
ONLY_SUMS = ("timm, SyncBatchNorm", "torchvision, GroupNorm")
each_network = pytest.mark.parametrize("name", NETS)


@pytest.fixture
def x():
    return torch.randn(3, 3, 32, 32)


@each_network
def test_evaluation(name, x):
    model = lively(NETS[name][0])
    norms = sum(isinstance(m, NORMS) or is_frozen(m) for m in model.modules())
    eager, exact = run(by_modules(model), x)[0], run(copy.deepcopy(model).double(), x.double())[0]
    out, rows = run(resnet_fused.convert(model), x)
    assert budget_used(out, eager, exact, channel_dim=None) <= 1
    assert rows and fused_sites([r for r in rows if r[0] != "add_relu"]) == (0 if name in ONLY_SUMS else norms)


@each_network
def test_training_step(name, x):
    """How many norms take their statistics in a fused op. Numbers: test_convert.py."""
    model = resnet_fused.convert(lively(NETS[name][0]).train())
    norms = sum(isinstance(m, NORMS) for m in model.modules())
    if name == "timm BatchNormAct2d":  # as torch does without us
        for refuses in (lively(NETS[name][0]).train(), model):
            with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
                refuses(x).square().mean().backward()
        return
    with dispatch.record() as rows:
        model(x).square().mean().backward()
    assert rows and sum(op == "bn_stats" for op, _, _ in rows) == (0 if name in ONLY_SUMS else norms)


@each_network
def test_freeze(name, x, monkeypatch):
    # The package has a function of that name. What is measured to be fastest is not the question here.
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)
    model = lively(NETS[name][0])
    expected, _ = run(model, x)
    assert (resnet_fused.freeze(model, x)(x) - expected).norm() <= 1e-3 * expected.norm()
