"""What stands around freeze() and an engine: the caller's random numbers and autocast."""

import pytest
import torch
from resnets import narrow

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
