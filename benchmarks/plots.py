"""Bars of speed-ups, and rooflines, of the newest results, as PNG and SVG."""

import importlib.util
import re
from pathlib import Path

from resnet_fused.commands.arguments import UsageError

from .rows import grouped, newest

OURS, PEERS, EAGER = "#1b7f5c", "#8a94a6", "#c9ced6"


def draw(rows, folder):
    """Writes the plots and returns their paths."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plots needs matplotlib: pip install 'resnet_fused[demo]'")
    import matplotlib

    matplotlib.use("Agg")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    latest = list(newest(rows).values())
    return [*_speedups(latest, folder), *_rooflines(rows, latest, folder)]


def _save(figure, folder, *name):
    import matplotlib.pyplot as plt

    stem = re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, name)).lower()).strip("-")
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return paths


BASES = ("eager", "eager, channels_last")  # the first that was measured at every batch


def _base(group, batches):
    """The name of the candidate that all others are compared with, or None."""
    measured = {(row["candidate"], row["batch"]) for row in group}
    return next((name for name in BASES if all((name, batch) in measured for batch in batches)), None)


def _short(device):
    """The name of a device without its threads and instruction set: "AMD EPYC (family 25, model 17)"."""
    return re.match(r"([^,(]|\([^)]*\))*", device).group()


def _speedups(latest, folder):
    import matplotlib.pyplot as plt

    paths = []
    rows = [row for row in latest if row["suite"] == "resnet" and "median" in row]
    groups = grouped(rows, "device", "mode", "model", "size", "dtype")
    for (device, mode, model, size, dtype), group in groups.items():
        batches = sorted({row["batch"] for row in group})
        base = _base(group, batches)
        if base is None:
            continue
        figure, axes = plt.subplots(1, len(batches), figsize=(4.2 * len(batches) + 1.5, 0.36 * 12 + 0.8), squeeze=False)
        for axis, batch in zip(axes[0], batches, strict=True):
            of = {row["candidate"]: row for row in group if row["batch"] == batch}
            bars = sorted(of.values(), key=lambda row: -row["median"])
            speed = [of[base]["median"] / row["median"] for row in bars]
            colours = [EAGER if r["candidate"] == base else OURS if r["kind"] == "ours" else PEERS for r in bars]
            axis.barh([row["candidate"] for row in bars], speed, color=colours)
            axis.axvline(1, color="black", linewidth=0.6)
            axis.set_xlim(0, 1.18 * max(speed))
            axis.spines[["top", "right"]].set_visible(False)
            for i, (row, value) in enumerate(zip(bars, speed, strict=True)):
                axis.text(value, i, f" {value:.2f}x  {row['images_per_second']:.0f}/s", va="center", fontsize=8)
            axis.set_title(f"batch {batch}", fontsize=10)
            axis.set_xlabel(f"times as fast as {base}")
        figure.suptitle(f"{model} {mode}, {dtype}, {size}x{size}: {_short(device)}", fontsize=11)
        figure.tight_layout()
        paths += _save(figure, folder, "speedup", model, mode, dtype, _short(device))
    return paths


def _rooflines(rows, latest, folder):
    import matplotlib.pyplot as plt
    import numpy as np

    paths = []
    ceilings = {(r["environment"]["device"], r["dtype"]): r for r in rows if r.get("case") == "ceilings"}
    kernels = [r for r in latest if r["suite"] == "kernels" and "median" in r and r["direction"] == "forward"]
    for (device, dtype), group in grouped(kernels, "device", "dtype").items():
        top = ceilings.get((device, dtype))
        convolutions = [r for r in group if r["flops"]]
        if top is None or not convolutions:
            continue
        figure, axis = plt.subplots(figsize=(7.5, 5))
        intensity = [r["flops"] / r["bytes"] for r in convolutions]
        x = np.geomspace(min(intensity) / 2, max(intensity) * 2, 200)
        axis.loglog(x, np.minimum(top["flops"], x * top["bytes"]) / 1e12, color="black", linewidth=1)
        for kind, colour, marker in (("peer", PEERS, "x"), ("ours", OURS, "o")):
            slowest_first = sorted((r for r in convolutions if r["kind"] == kind), key=lambda r: -r["median"])
            best = {r["case"]: r for r in slowest_first}
            axis.scatter(
                [r["flops"] / r["bytes"] for r in best.values()], [r["tflops"] for r in best.values()],
                color=colour, marker=marker, s=28, label=f"fastest of {'the peers' if kind == 'peer' else 'ours'}",
            )  # fmt: skip
        axis.set_xlabel("FLOP per byte, each tensor moved once")
        axis.set_ylabel("TFLOP/s of a direct convolution")
        axis.set_title(
            f"conv_bn_relu forward, {dtype}: {_short(device)}\nline: measured matrix product and copy", fontsize=10
        )
        axis.grid(True, which="both", linewidth=0.3, alpha=0.6)
        axis.legend(frameon=False, fontsize=9)
        paths += _save(figure, folder, "roofline", dtype, _short(device))
    return paths
