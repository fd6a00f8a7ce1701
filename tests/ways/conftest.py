"""Engines of the ways take the first kernel that runs: which one is fastest is not the question here."""

import pytest

from resnet_fused.frozen.cpu import engine


@pytest.fixture(autouse=True)
def _no_measurements(monkeypatch):
    monkeypatch.setattr(engine, "TUNING_SECONDS", 0.0)
