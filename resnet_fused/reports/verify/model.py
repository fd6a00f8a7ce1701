"""The model checks of `verify`: ResNet-34 in evaluation, one training step, and frozen."""

import copy

import torch
from torch.nn.functional import cross_entropy

from ...frozen.check import eager_and_oracle
from ...frozen.cpu.engine import DTYPES as FROZEN_DTYPES
from ...frozen.freeze import freeze
from ...measure.accuracy import budget_used, exact, gradient_budget_used
from ...measure.oracle import by_modules, in_float64, with_lively_norms
from ...models.resnet import resnet34
from .masks import ReluMasks, WithMasks


def check_model(device, dtype, quick):
    """Yields (label, function that compares): see verify.py."""
    size = 64 if quick else 128
    for what, shape, compare in (
        ("resnet34 eval", (2, 3, size, size), _evaluation),
        ("resnet34 eval as born", (2, 3, size, size), _evaluation),
        ("resnet34 train step", (4, 3, 40, 40), _training_step),
        ("resnet34 frozen", (2, 3, size, size), _frozen),
    ):
        lively = not what.endswith("as born")
        if compare is _frozen and (device != "cpu" or dtype not in FROZEN_DTYPES):
            continue  # freeze() does not take these
        label = {"what": what, "shape": "x".join(map(str, shape)), "dtype": str(dtype)[6:], "backend": "auto"}
        yield label, lambda compare=compare, of=(shape, device, lively): compare(*_model_and_input(*of), dtype)


def _model_and_input(shape, device, lively):
    """`lively`: with norms far from those that a network is born with, whose sums of 16-bit types are full of ties."""
    # Channels last for eager too: its error depends on the format, by a factor of 1.8 in float32 on a CPU.
    model = resnet34()
    model = (with_lively_norms(model) if lively else model).to(device, memory_format=torch.channels_last)
    return model, torch.randn(shape, device="cpu").to(device).contiguous(memory_format=torch.channels_last)


def _errors(ours, eager, oracle, oracle_eager=None):
    scale = oracle.abs().max().item()
    pairs = ((ours, oracle), (eager, oracle if oracle_eager is None else oracle_eager))
    return [(t.double() - o).abs().max().item() / scale for t, o in pairs]


@torch.no_grad()
def _evaluation(model, x, dtype):
    model, x = model.to(dtype).eval(), x.to(dtype)
    oracle = in_float64(model)(exact(x))
    eager, ours = by_modules(model)(x), model(x)
    return *_errors(ours, eager, oracle), budget_used(ours, eager, oracle, channel_dim=0)


@torch.no_grad()
def _frozen(model, x, dtype):
    """Engine and eager both start from the float32 model, so the rounding of the weights counts for both."""
    model.eval()
    (eager,), _, _ = eager_and_oracle(model, x, dtype)
    oracle = in_float64(model)(exact(x))
    ours = freeze(model, x, dtype=dtype)(x).to(dtype)
    return *_errors(ours, eager, oracle), budget_used(ours, eager, oracle, channel_dim=0)


def _training_step(model, x, dtype):
    """Logits, gradients and running statistics of one step; the worst counts."""
    model, x = model.to(dtype), x.to(dtype)
    target = torch.arange(len(x), device=x.device)
    wide = in_float64(model)

    def step(model, x, mode):
        model = copy.deepcopy(model).train()
        with mode:
            out = model(x)
        cross_entropy(out.double(), target).backward()
        statistics = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        return out.detach(), [p.grad for p in model.parameters()], statistics

    our_masks, eager_masks = ReluMasks(), ReluMasks()
    ours, eager = step(model, x, our_masks), step(by_modules(model), x, eager_masks)
    oracle, oracle_eager = (step(wide, exact(x), WithMasks(r.masks)) for r in (our_masks, eager_masks))
    shares = [
        budget_used(ours[0], eager[0], oracle[0], oracle_eager=oracle_eager[0], channel_dim=0),
        gradient_budget_used(ours[1], eager[1], oracle[1], oracle_eager[1]),
    ]
    shares += [budget_used(ours[2][n], eager[2][n], oracle[2][n], oracle_eager=oracle_eager[2][n]) for n in ours[2]]
    return *_errors(ours[0], eager[0], oracle[0], oracle_eager[0]), max(shares)
