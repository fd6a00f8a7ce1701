"""The network of a run and the learning rate of a step."""

import math

import torch
from torch import nn

from ... import dispatch
from ...measure.oracle import by_modules
from ...models import MODELS, weights
from . import CannotTrain


def build(args, classes, size):
    """args.arch for `classes` classes of images of `size` pixels, from args.seed or args.weights. Raises CannotTrain."""
    torch.manual_seed(args.seed)
    model = MODELS[args.arch](
        num_classes=classes, zero_init_residual=True, memory_efficient=args.memory_efficient
    )  # fmt: skip
    if args.stem == "cifar" or (args.stem == "auto" and size <= 64):
        # He et al., arXiv:1512.03385, section 4.2: maps of 32x32 are small enough as they are.
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if args.batch == 1 and not args.sync_bn and size <= (8 if type(model.maxpool) is nn.Identity else 32):
        raise CannotTrain(
            f"--batch: 1 image of {size}x{size} ends in one value per channel: a larger --batch or --size"
        )
    if args.weights:
        _load(model, args.arch, args.weights, classes)
    # Eager: torch's modules one by one, on torch's own operators.
    return by_modules(model) if args.backend == dispatch.EAGER.name else model


def _load(model, arch, name, classes):
    try:
        state = weights.resolve(arch, name, True, {})
        found = state["fc.bias"].shape[0] if "fc.bias" in state else None
        if found not in (None, classes):
            raise CannotTrain(f"--weights: {name} has {found} classes, the data {classes}")
        weights.filled(model, state, name)
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotTrain(f"--weights: {error}") from error


def learning_rate(args, step, steps_per_epoch):
    """One epoch of warm-up, then half a cosine down to zero."""
    warm, last = steps_per_epoch, args.epochs * steps_per_epoch
    if step < warm:
        return args.lr * (step + 1) / warm
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, last - warm)))
