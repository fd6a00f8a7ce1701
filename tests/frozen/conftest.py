"""Fixtures of the tests of frozen networks."""

import contextlib

import pytest
import torch
from one_call_cases import measured

import resnet_fused
from resnet_fused.frozen.cpu import amx, one_call
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.measure import remembered


@pytest.fixture
def measured_here():
    """Nothing is remembered."""
    with remembered.ignored():
        yield


@pytest.fixture(params=["vectors", "unit"])
def vectors_or_the_unit_or_its_emulation(monkeypatch, request):
    why = None if request.param == "unit" else "only vectors"
    monkeypatch.setattr(amx, "why_not_unit", lambda: why)
    measured(monkeypatch, one_call.KINDS, whole=1.0, layers=2.0)


@pytest.fixture
def quick(device):
    """The formula in torch where the kernel would be interpreted."""
    if (why := fp8.why_not(torch.device(device))) is not None:
        pytest.skip(why)
    with resnet_fused.backend("eager") if device == "cpu" else contextlib.nullcontext():
        yield


@pytest.fixture
def interpreted():
    """For what needs no GPU: skipped where the tests run on one, and nothing is interpreted."""
    if (why := fp8.why_not(torch.device("cpu"))) is not None:
        pytest.skip(why)
