"""Candidates that fail: the others remain, the first error is told, and a device that fails ends the measurement."""

import functools

import pytest
import torch

from resnet_fused.frozen.gpu import measure
from resnet_fused.measure import timing

CPU = torch.device("cpu")


def made(candidate):
    if candidate.startswith("broken"):
        raise OSError(f"{candidate}: no compiler")
    return [lambda: None], 0.5


compare = functools.partial(measure.compare, made=made, device=CPU, graphed=False, budget=0.0, what="conv1 in float16")


def test_the_others_remain():
    seconds = compare(able=["broken", "right"])
    assert seconds["broken"] == float("inf") > seconds["right"]


def test_the_first_error_is_told():
    with pytest.raises(ValueError, match=r"^freeze: nothing runs conv1 in float16$") as raised:
        compare(able=["broken-first", "broken-second"])
    assert str(raised.value.__cause__) == "broken-first: no compiler"


def test_a_device_that_fails_ends_the_measurement(monkeypatch):
    """A CUDA error stays: every later candidate would fail by it, and the last would win with no time at all."""

    def synchronise(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(timing, "_synchronise", synchronise)
    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        compare(able=["broken", "right"])
    assert isinstance(raised.value.__context__, OSError)
