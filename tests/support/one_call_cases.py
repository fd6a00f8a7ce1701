"""Networks that are frozen into one call of the library, as if every layer had been measured."""

import functools
import importlib

import torch

import resnet_fused
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.resnet import BasicBlock, ResNet

freeze_module = importlib.import_module("resnet_fused.frozen.freeze")  # resnet_fused.freeze is the function


def measured(monkeypatch, best, whole, layers):
    """As if so many seconds had been measured, and `best` were the fastest ways of every layer."""

    def best_of_calls(engine, x):
        engine(x)
        return layers if engine._whole is None else whole

    def measure(sites, able, dtype, budget):
        # Turn about, so that every kernel is in the network.
        first = [way for way in able if way in best]
        first = first[len(sites[0].name) % len(first) :] if first else able
        return {way: float(way is not first[0]) for way in able}

    monkeypatch.setattr(freeze_module, "best_of_calls", best_of_calls)
    monkeypatch.setattr(freeze_module, "measure", measure)
    monkeypatch.setattr(freeze_module.Engine, "_known", lambda self, key, able, measure: measure())


def network(block=BasicBlock):
    torch.manual_seed(0)
    model = ResNet(block, [1, 1, 1, 1], num_classes=7)
    return with_lively_norms(model).eval()


def cifar(**options):
    torch.manual_seed(0)
    return with_lively_norms(resnet_fused.resnet20(**options)).eval()


@functools.cache
def frozen(make):
    """One engine for all tests that change nothing about it: freezing takes seconds in the emulation."""
    return resnet_fused.freeze(make(), torch.randn(2, 3, 48, 48))
