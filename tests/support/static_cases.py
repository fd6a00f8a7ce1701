"""Engines for GPUs, frozen for the tests: on a CPU call by call, with --device=cuda as a graph."""

import copy

import torch

import resnet_fused
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.measure.accuracy import assert_within_budget


def frozen(model, x, device="cpu", **kwargs):
    return freeze_gpu(model, x, graph=device == "cuda", **kwargs)


def check(model, x, device, dtype=torch.float32, **kwargs):
    engine = frozen(model, x, device, dtype=dtype, **kwargs)
    oracle = copy.deepcopy(model).eval().double()(x.double()).detach()
    with torch.no_grad(), resnet_fused.backend("eager"):
        eager = copy.deepcopy(model).eval().to(dtype)(x.to(dtype))
    assert_within_budget(engine(x), eager, oracle, f"static {dtype}", channel_dim=None)
    return engine
