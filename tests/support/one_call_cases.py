"""Networks that are frozen into one call of the library, as if every layer had been measured."""

import functools

import torch

import resnet_fused
from resnet_fused.frozen.cpu import measure
from resnet_fused.frozen.cpu.engine import CpuEngine
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.resnet import BasicBlock, ResNet


def measured(monkeypatch, best, whole, layers):
    """As if so many seconds had been measured, and `best` were the fastest ways of every layer."""

    def of_networks(ways, x, budget):
        for run in ways.values():
            run(x)
        return {way: layers if run.one_call is None else whole for way, run in ways.items()}

    def of_layer(steps, able, dtype, budget):
        # Turn about, so that every kernel is in the network.
        first = [candidate for candidate in able if candidate in best]
        first = first[len(steps[0].name) % len(first) :] if first else able
        return {candidate: float(candidate is not first[0]) for candidate in able}

    monkeypatch.setattr(measure, "networks", of_networks)
    monkeypatch.setattr(measure, "layer", of_layer)
    monkeypatch.setattr(CpuEngine, "_measured", lambda self, key, able, measure: measure())


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
