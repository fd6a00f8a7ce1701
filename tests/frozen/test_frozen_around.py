"""What stands around freeze() and an engine: the caller's random numbers, autocast and inference mode, and odd models."""

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


def test_inference_mode_around_freeze_and_an_engine_changes_nothing():
    model, x = network(), torch.randn(X)
    with torch.inference_mode():
        engine = resnet_fused.freeze(model, torch.randn(X))
        inside = engine(x).clone()
    assert torch.equal(inside, engine(x)) and not engine(x).is_inference()
    model.conv1.weight.data.mul_(0.5)
    engine.refresh()
    torch.testing.assert_close(engine(x), model(x).detach(), rtol=1e-3, atol=1e-3)


def test_a_first_module_that_runs_as_it_is():
    model, x = network(), torch.randn(X)
    model.conv1.register_forward_hook(lambda m, args, out: out * 1.25)
    with torch.no_grad():
        torch.testing.assert_close(resnet_fused.freeze(model, x)(x), model(x), rtol=1e-3, atol=1e-3)


def forward_of_its_own(model):
    real = model.bn1.forward
    model.bn1.forward = lambda x: real(x)


def buffer_as_attribute(model):
    model.bn1.__dict__["running_mean"] = model.bn1._buffers.pop("running_mean")


@pytest.mark.parametrize("change", [forward_of_its_own, buffer_as_attribute])
def test_a_model_without_a_copy_in_float64_is_refused(change):
    model = network()
    change(model)
    with pytest.raises(
        TypeError, match=r"^freeze: a copy of the model in float64, .* raises RuntimeError \(.*; use the live"
    ):
        resnet_fused.freeze(model, torch.randn(X))
