"""freeze() and tune on the second GPU, while the first is current: events, streams and graphs belong to the second."""

import networks
import pytest
import torch
from emulator import pretended

import resnet_fused
from resnet_fused.commands.tune import calls, tune
from resnet_fused.frozen import check
from resnet_fused.frozen.gpu import measure
from resnet_fused.measure import remembered

SECOND = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def _own(own_cache, monkeypatch):
    """No time is measured, no values are compared, and numbers are drawn on the CPU."""
    for module in (check, measure, tune):
        monkeypatch.setattr(module, "budget_used", lambda *args, **kwargs: 0.0)
    monkeypatch.setattr(check, "absurd", lambda eager, oracle: False)
    monkeypatch.setattr(tune, "PER_CALL", 0.0)
    random = torch.Generator
    monkeypatch.setattr(calls.torch, "Generator", lambda device="cpu": random())
    pretended.used.clear()


def model():
    return networks.network("basic").to(SECOND).eval()


def images():
    return networks.images("basic", 2, 32).to(SECOND)


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "calls"])
def test_freeze(graph):
    engine = resnet_fused.freeze(model(), images(), dtype=torch.bfloat16, graph=graph)
    assert engine(images()).device == SECOND and torch.cuda.current_device() == 0
    engine.refresh()
    assert {"Event"} <= {what for what, _ in pretended.used} and {index for _, index in pretended.used} == {1}
    assert graph == ("Graph" in {what for what, _ in pretended.used})


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_tune(train):
    rows, _ = tune.tune(model(), (2, 3, 32, 32), torch.bfloat16, train=train, seconds=5.0)
    assert rows and torch.cuda.current_device() == 0
    assert {"Event"} <= {what for what, _ in pretended.used} and {index for _, index in pretended.used} == {1}
    assert remembered.table(SECOND).entries
