"""What a static engine must show before anybody gets it: its accuracy, whole and layer by layer, and its speed."""

import warnings

import torch

from ...kernels import layout
from ...measure import timing
from ...measure.accuracy import budget_used, channel_dim_of, exact
from ...measure.oracle import by_modules, in_float64
from ...ops.conv_bn_relu import reference
from . import layers

CHECKED = 4  # images whose logits are compared with float64
FEW = 1 << 22  # values of x that are compared in float64: images do not depend on each other


def _by_torch(site, x, residual, dtype):
    conv, bn = site.conv, site.bn
    wide = [None if t is None else t.detach().to(dtype) for t in (conv.weight, bn.weight, bn.bias)]
    statistics = [t.to(dtype) for t in (bn.running_mean, bn.running_var)]
    out = reference(
        x, *wide, *statistics, residual, stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
        groups=conv.groups, momentum=0.0, eps=bn.eps, relu=site.relu,
    )  # fmt: skip
    return torch.nn.functional.max_pool2d(out, 3, 2, 1) if site.pool else out


@torch.no_grad()
def layer_shares(site, layer, x, residual, out):
    """(share of the error budget that `layer` uses on `x` and `residual`, eager's result for the first images)."""
    ours = layer(x, residual, out)
    images = max(1, min(x.shape[0], FEW * x.shape[0] // x.numel()))
    x, residual = x[:images], None if residual is None else residual[:images]
    eager = _by_torch(site, x, residual, x.dtype)
    oracle = _by_torch(site, exact(x), exact(residual), torch.float64)
    return budget_used(ours[:images], eager, oracle, channel_dim=channel_dim_of(eager)), eager


@torch.no_grad()
def refuse(engine, x, share):
    """Raises ValueError with the name of the layer that uses most of its error budget on the images `x`."""
    shares = []

    def step(site, x, residual=None):
        x, residual = (None if t is None else layout.in_format(t, layout.CHANNELS_LAST) for t in (x, residual))
        shape = (x.shape[0], *layers.out_shape(site)[1:])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
        share_of_it, eager = layer_shares(site, site.run, x, residual, out)
        shares.append((share_of_it, site.name, site.way.name))
        return _by_torch(site, x, residual, x.dtype) if eager.shape[0] < x.shape[0] else eager

    x = step(engine._stem, x)
    x = x if engine._pool is None else engine._pool(x)
    for block in engine._blocks:
        shortcut = x
        if block.projection is not None:
            shortcut = step(block.projection, x)
        elif block.shortcut is not None:
            shortcut = block.shortcut(x)
        for site in block.sites:
            x = step(site, x, shortcut if site.residual else None)
    worst, name, way = max(shares)
    raise ValueError(
        f"freeze: the engine uses {share:.2f} of its error budget in {engine.dtype}; the worst layer is {name} "
        f"({way}) with {worst:.2f}: use the live model, or a wider dtype"
    )


@torch.no_grad()
def share(engine, example):
    """The share of the error budget of its dtype that the logits of `engine` use."""
    few = example[:CHECKED].to(engine.dtype)
    eager = by_modules(engine._model).eval().to(engine.dtype)(few)
    oracle = in_float64(by_modules(engine._model).eval())(exact(few))
    return budget_used(engine(example)[: len(few)], eager, oracle, channel_dim=None)


@torch.no_grad()
def check(engine, example):
    """Refuses an engine whose logits are outside of the error budget of its dtype."""
    if (used := share(engine, example)) > 1:
        refuse(engine, example[:CHECKED].to(engine.dtype), used)


@torch.no_grad()
def compare(engine, example):
    """{"engine", "live"}: the Timing of a call of each, in turns."""
    model, device = engine._model, engine.device.type
    training = [m for m in model.modules() if m.training]
    x = layout.in_format(example.to(model.conv1.weight.dtype), layout.CHANNELS_LAST)
    try:
        model.eval()
        return timing.interleaved(
            {"engine": lambda: engine(example), "live": lambda: model(x)},
            seconds=0.1, min_rounds=3, device=device, clock=timing.cuda_clock if device == "cuda" else None,
        )  # fmt: skip
    finally:
        for m in training:
            m.training = True


def warn_of_slowness(seconds):
    took = {name: f"{1e3 * s:.3f} ms" for name, s in seconds.items()}
    warnings.warn(f"freeze: the engine takes {took['engine']}, the live model {took['live']}", stacklevel=6)
