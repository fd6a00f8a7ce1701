"""The first table of the matrix: the networks that people have, in evaluation, in training and frozen."""

import copy

import torch
from foreign import lively, run
from matrix import message
from nets import NETS, fused_sites
from torch import nn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.accuracy import budget_used
from resnet_fused.measure.oracle import by_modules
from resnet_fused.modules.norms import is_frozen

COLUMNS = ("evaluation", "training step", "freeze()")
X = (3, 3, 40, 56)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def norms_in(model):
    return sum(isinstance(m, NORMS) or is_frozen(m) for m in model.modules())


def text_of(fused, norms, rows):
    if fused == 0:
        return "fused, only sums and ReLUs" if rows else "by fallback (no kernel ran)"
    return "fused" if fused == norms else f"fused, {fused} of {norms} norms"


def evaluation(model, x):
    eager, exact = run(by_modules(model), x)[0], run(copy.deepcopy(model).double(), x.double())[0]
    out, rows = run(resnet_fused.convert(model), x)
    assert budget_used(out, eager, exact, channel_dim=None) <= 1
    fused, norms = fused_sites([r for r in rows if r[0] != "add_relu"]), norms_in(model)
    assert fused <= norms
    return text_of(fused, norms, rows)


def training(model, x):
    """How many batch norms took their statistics in a fused op. The numbers: test_training in test_convert.py."""
    resnet_fused.convert(model.train())
    with dispatch.record() as rows:
        model(x).square().mean().backward()
    fused = sum(op == "bn_stats" for op, _, _ in rows)
    norms = sum(isinstance(m, NORMS) for m in model.modules())
    if norms == 0:
        return "fused, all norms frozen" if rows else "by fallback (no kernel ran)"
    return text_of(fused, norms, rows)


def frozen(model, x):
    expected, _ = run(model, x)
    out = resnet_fused.freeze(model, x)(x)
    assert (out - expected).norm() <= 1e-3 * expected.norm()
    return "fused"


def row_of(label):
    """[text of every cell]. Raises AssertionError where fused and eager differ."""
    x, texts = torch.randn(X, generator=torch.Generator().manual_seed(0)), []
    for experiment in (evaluation, training, frozen):
        model = lively(NETS[label][0])
        try:
            texts.append(experiment(model, x))
        except (TypeError, RuntimeError) as e:
            texts.append(f"refused{_as_in_eager(label, experiment, x, e)} ({message(e)})")
    return texts


def _as_in_eager(label, experiment, x, error):
    """Whether the network refuses to be trained as it comes, too."""
    if experiment is training:
        try:
            lively(NETS[label][0]).train()(x).square().mean().backward()
        except type(error):
            return " as in eager"
    return ""


def lines():
    rows = [f"| {label} | {' | '.join(row_of(label))} |" for label in NETS]
    return ["", "## Networks", "", f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|", *rows]
