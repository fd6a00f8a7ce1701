"""python -m resnet_fused.train.proof: training with fused ops is training as torch does it, on real images.

Curves: SGD on fixed batches of scikit-learn's digits. Rounding makes any two runs part, so the distance of our loss curve from
eager's is set beside those of eager runs that only add in another order: images permuted within each batch (the same loss
mathematically), and another memory format. Accuracy: whole trainings from several seeds, side by side.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from ...kernels import layout
from ...measure.oracle import by_modules
from ...models import resnet
from ...reports import table
from ..progress import Progress
from . import data


def _network(blocks):
    """A residual network with the stem for small images; the same from every call."""
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.BasicBlock, blocks, num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model.train()


def curve(model, steps, batch, order=None, memory_format=layout.CONTIGUOUS, progress=None):
    """The losses of `steps` steps of SGD on digits. order: seed of a permutation within each batch; None: as they come.

    A learning rate of 0.001: with 0.01 every rounding error grows into a distance of 2e-2 within 60 steps, whoever makes it,
    and nothing can be told apart (measured on a CPU, 2026-11-24).
    """
    images, _, _ = data.load("digits", 8, 0)
    model = copy.deepcopy(model).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for step in range(steps):
        if progress is not None:
            progress(f"step {step + 1}/{steps}")
        indices = [(step * batch + i) % len(images) for i in range(batch)]
        if order is not None:
            shuffle = torch.randperm(batch, generator=torch.Generator().manual_seed(order * 100_003 + step)).tolist()
            indices = [indices[i] for i in shuffle]
        x = torch.stack([images.images[i] for i in indices]).float() / 255
        loss = nn.functional.cross_entropy(model(x.contiguous(memory_format=memory_format)), images.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def distance(a, b):
    """Mean absolute difference of two loss curves."""
    return statistics.fmean(abs(x - y) for x, y in zip(a, b, strict=True))


def curves(steps=200, batch=32, blocks=(1, 1, 1, 1), orders=(1, 2), progress=None):
    """({name: distance from eager's curve}, eager's curve); the names of eager runs start with "eager"."""
    model = _network(blocks)
    eager = by_modules(model)

    def say(name):
        return None if progress is None else lambda text: progress(f"{name}: {text}")

    first = curve(eager, steps, batch, progress=say("eager"))
    found = {"fused": distance(first, curve(model, steps, batch, progress=say("fused")))}
    model.memory_efficient = True
    found["fused, memory_efficient"] = distance(first, curve(model, steps, batch, progress=say("memory_efficient")))
    last = curve(eager, steps, batch, memory_format=layout.CHANNELS_LAST, progress=say("eager channels_last"))
    found["eager, channels_last"] = distance(first, last)
    for order in orders:
        name = f"eager, images permuted ({order})"
        found[name] = distance(first, curve(eager, steps, batch, order, progress=say(name)))
    return found, first


def no_further(found):
    """Whether every fused curve is as near to eager's as the furthest of the other eager curves."""
    limit = max(d for name, d in found.items() if name.startswith("eager"))
    return all(d <= limit for name, d in found.items() if not name.startswith("eager"))


def accuracies(seeds=3, epochs=8, options=()):
    """[(seed, fused accuracy, eager accuracy)] of whole trainings on digits."""
    from ..main import parser
    from .run import run

    found = []
    for seed in range(seeds):
        row = [seed]
        for backend in ("auto", "eager"):
            with tempfile.TemporaryDirectory() as folder:
                argv = ["train", "--seed", str(seed), "--backend", backend, "--epochs", str(epochs), *options]
                rows = run(parser().parse_args([*argv, "--output", str(Path(folder) / "run")]))
            row.append(rows[-1]["val_accuracy"])
        found.append(tuple(row))
    return found


def equal_within_noise(found):
    """Whether the mean accuracies differ by no more than the seeds explain (Welch's t test, 95 % at three seeds: 2.78
    standard errors), or by one or two images of 360."""
    ours, eager = ([row[i] for row in found] for i in (1, 2))
    noise = (statistics.variance(ours) + statistics.variance(eager)) ** 0.5 / len(found) ** 0.5
    return abs(statistics.fmean(ours) - statistics.fmean(eager)) <= max(2.78 * noise, 2 / 360)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m resnet_fused.train.proof", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args(argv)
    with Progress() as progress:
        found, _ = curves(options.steps, progress=progress.step)
    columns = {"name": "run", "distance": "mean |loss - eager's loss|"}
    print(table.render(columns, [{"name": name, "distance": f"{d:.2e}"} for name, d in found.items()]))
    accurate = accuracies(options.seeds, options.epochs)
    columns = {"seed": "seed", "ours": "fused", "eager": "eager"}
    rows = [{"seed": s, "ours": f"{a:.4f}", "eager": f"{b:.4f}"} for s, a, b in accurate]
    mean = [statistics.fmean(row[i] for row in accurate) for i in (1, 2)]
    print(table.render(columns, [*rows, {"seed": "mean", "ours": f"{mean[0]:.4f}", "eager": f"{mean[1]:.4f}"}]))
    passed = no_further(found) and equal_within_noise(accurate)
    print("as eager" if passed else "NOT as eager", "(measured)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
