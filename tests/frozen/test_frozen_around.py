"""What stands around freeze() and an engine: the caller's random numbers and autocast, and modules that engines do not run."""

import pytest
import torch
from resnets import narrow
from torch import nn

import resnet_fused
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.measure import remembered
from resnet_fused.measure.oracle import with_lively_norms

X = (2, 3, 32, 32)


@pytest.fixture(autouse=True)
def _no_measurements(monkeypatch):
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)


def network():
    return with_lively_norms(resnet_fused.CifarResNet(1, num_classes=5)).eval()


def test_random_numbers_of_the_caller_are_left_alone():
    """Whether kernels are measured, or remembered from the last time."""
    model, x = network(), torch.randn(X)
    before = torch.get_rng_state()
    with remembered.ignored():
        resnet_fused.freeze(model, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("net", [network, lambda: narrow().eval()], ids=["in-one-call", "by-layers"])
def test_autocast_around_an_engine_changes_nothing(net, exact):
    model, x = net(), torch.randn(X)
    engine = resnet_fused.freeze(model, x, exact=exact)
    expected = engine(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine(x), expected)
        made_here = resnet_fused.freeze(model, x, exact=exact)
    assert made_here.dtype == torch.float32 and torch.equal(made_here(x), expected)


@pytest.mark.parametrize("path", ["relu", "layer2.0.relu"])
def test_another_activation_is_refused_even_if_the_example_cannot_tell(path):
    """ReLU6 is ReLU for values below 6."""
    model = network()
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ReLU6())
    with pytest.raises(TypeError, match=rf"freeze: {path} is a ReLU6, not exactly nn\.ReLU; use the live model"):
        resnet_fused.freeze(model, torch.randn(X))


@pytest.mark.parametrize("path", ["", "layer1", "layer2.0", "layer2.0.bn1", "layer2.0.relu"])
def test_a_forward_that_was_replaced_is_refused(path):
    model = network()
    module = model.get_submodule(path)
    module.forward = module.forward
    with pytest.raises(TypeError, match=f"freeze: {path or 'the model'} has a forward that was replaced"):
        resnet_fused.freeze(model, torch.randn(X))


def test_statistics_that_are_no_buffers_are_refused():
    model = network()
    model.bn1.__dict__["running_mean"] = model.bn1._buffers.pop("running_mean")
    with pytest.raises(
        TypeError, match=r"freeze: conv1 has running statistics that are no buffers; use the live model"
    ):
        resnet_fused.freeze(model, torch.randn(X))


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_a_setting_that_is_no_pair_is_refused(name):
    model = network()
    setattr(model.layer1[0].conv1, name, 1)
    with pytest.raises(TypeError, match=rf"freeze: layer1\.0\.conv1 has {name} 1, not a pair; use the live model"):
        resnet_fused.freeze(model, torch.randn(X))
