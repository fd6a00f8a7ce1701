"""What a network returns comes back in its own containers, or is refused by name."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.frozen.gpu.engine import freeze_gpu


@pytest.fixture(autouse=True)
def _quick_tuning(monkeypatch):
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)


@dataclass
class Output(OrderedDict):
    """As transformers' ModelOutput: a dataclass that is a dict of those of its fields that are not None. torch's pytree has not
    been told of it."""

    logits: torch.Tensor = None
    hidden: tuple = None
    loss: torch.Tensor = None

    def __post_init__(self):
        for name in ("logits", "hidden", "loss"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

    def to_tuple(self):
        return tuple(self.values())


@dataclass
class Plain:
    """torch.fx does not look for values in it."""

    logits: torch.Tensor


class Opaque:
    def __init__(self, logits):
        self.logits = logits


class Wrapped(nn.Module):
    """`results(map, logits)` is what it returns."""

    def __init__(self, results):
        super().__init__()
        self.conv, self.fc, self.results = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), results

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.results(x, self.fc(x.mean((2, 3))))


def outputs(x, logits):
    return Output(logits=logits, hidden=(x,))


def check(ours, theirs):
    assert type(ours) is Output and list(ours) == ["logits", "hidden"] and ours.loss is None
    assert ours.logits is ours["logits"] and len(ours.to_tuple()) == 2
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.hidden[0], theirs.hidden[0], atol=1e-5, rtol=1e-5)


def test_a_dataclass_that_is_a_dict():
    model, x = Wrapped(outputs).eval(), torch.randn(2, 3, 8, 8)
    check(resnet_fused.freeze(model, x)(x), model(x))


def test_a_dataclass_that_is_a_dict_from_the_gpu_engine():
    """Which cuts results to the images that were asked for, and joins those of pieces."""
    model, x = Wrapped(outputs).eval(), torch.randn(5, 3, 8, 8)
    check(freeze_gpu(model, x[:2], graph=False, batch="pad")(x), model(x))


def test_an_output_that_is_wrong_is_seen_inside_of_the_dataclass(monkeypatch):
    monkeypatch.setattr(
        cpu_engine.CpuEngine, "__call__", lambda self, x: outputs(torch.zeros(1, 8, 6, 6), torch.ones(1, 4))
    )
    with pytest.raises(ValueError, match=r"the logits are .* times the error budget away"):
        resnet_fused.freeze(Wrapped(outputs).eval(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("kind", [Plain, Opaque])
def test_another_object_is_refused_by_name(kind):
    model = Wrapped(lambda x, logits: kind(logits)).eval()
    with pytest.raises(
        TypeError, match=f"returns a {kind.__name__}, in which a trace finds no tensor; use the live model"
    ):
        resnet_fused.freeze(model, torch.randn(2, 3, 8, 8))
