"""Random networks for freeze(): branches, joins, values that are read again, writes in place, parts that stay torch's."""

import random

import torch
import torch.nn.functional as F
from torch import nn

from resnet_fused.measure.oracle import with_lively_norms

CHANNELS = 8


class Opaque(nn.Module):
    """A forward that no trace shows."""

    def forward(self, x):
        return x * 2 if x.shape[1] > 0 and float(x.flatten()[0]) > 1e9 else x * 0.5


def _conv_norm(rng, c):
    groups, dilation = rng.choice([1, 1, 2, c]), rng.choice([1, 1, 2])
    kernel = rng.choice([1, 3, 3])
    conv = nn.Conv2d(c, c, kernel, 1, dilation * (kernel // 2), dilation, groups, bias=rng.random() < 0.3)
    return nn.Sequential(conv, *([nn.BatchNorm2d(c)] if rng.random() < 0.8 else []))


# name: (number of maps that it reads, what makes its module or None, function of (module, maps))
STEPS = {
    "conv": (1, _conv_norm, lambda m, x: m(x)),
    "conv relu": (
        1,
        lambda r, c: nn.Sequential(*_conv_norm(r, c), nn.ReLU(inplace=r.random() < 0.5)),
        lambda m, x: m(x),
    ),
    "conv act": (
        1,
        lambda r, c: nn.Sequential(*_conv_norm(r, c), r.choice([nn.SiLU, nn.Hardswish, nn.ReLU6])(inplace=True)),
        lambda m, x: m(x),
    ),
    "norm relu": (1, lambda r, c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True)), lambda m, x: m(x)),
    "relu in place": (1, None, lambda m, x: F.relu_(x)),
    "relu": (1, None, lambda m, x: torch.relu(x)),
    "add": (2, None, lambda m, x, y: x + y),
    "add relu": (2, None, lambda m, x, y: F.relu(x + y)),
    "add in place": (2, None, lambda m, x, y: x.add_(y)),
    "conv add": (2, _conv_norm, lambda m, x, y: m(x) + y),
    "conv add relu": (2, _conv_norm, lambda m, x, y: F.relu(m(x) + y, inplace=True)),
    "multiply": (2, None, lambda m, x, y: x * torch.sigmoid(y)),
    "gate": (1, lambda r, c: nn.Conv2d(c, c, 1), lambda m, x: x * m(x.mean((2, 3), keepdim=True)).sigmoid()),
    "cat": (2, lambda r, c: nn.Conv2d(2 * c, c, 1, bias=False), lambda m, x, y: m(torch.cat([x, y], 1))),
    "chunks": (1, None, lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "view": (1, None, lambda m, x: x.view(x.size(0), 2, -1, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)),
    "pool": (1, None, lambda m, x: F.interpolate(F.max_pool2d(x, 2, ceil_mode=True), size=x.shape[-2:])),
    "dropout": (1, lambda r, c: nn.Dropout(0.5), lambda m, x: m(x)),
    "opaque": (1, lambda r, c: Opaque(), lambda m, x: m(x)),
}


class Random(nn.Module):
    """`length` steps over the maps so far, drawn from `seed`. Returns a tuple, a dict, a map or logits."""

    def __init__(self, seed, length=8):
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, rng.choice([1, 2]), 1, bias=False), nn.BatchNorm2d(CHANNELS)
        )
        self.program, self.parts = [], nn.ModuleList()
        for i in range(length):
            name = rng.choice(list(STEPS))
            count, make, _ = STEPS[name]
            latest = i  # the maps so far are numbers 0 to i; most steps read the latest
            reads = [rng.choice([latest, latest, rng.randint(0, latest)]) for _ in range(count)]
            self.program.append((name, tuple(reads)))
            self.parts.append(make(rng, CHANNELS) if make else nn.Identity())
        self.result = rng.choice(["map", "tuple", "dict", "logits"])
        self.fc = nn.Linear(CHANNELS, 5)

    def forward(self, x):
        maps = [self.stem(x)]
        for (name, reads), part in zip(self.program, self.parts):  # noqa: B905
            maps.append(STEPS[name][2](part, *(maps[i] for i in reads)))
        y, early = maps[-1], maps[len(maps) // 2]
        if self.result == "tuple":
            return y, early
        if self.result == "dict":
            return {"last": y, "early": early}
        return y if self.result == "map" else self.fc(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def network(seed):
    return with_lively_norms(Random(seed)).eval()
