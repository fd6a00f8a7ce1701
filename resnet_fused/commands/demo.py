"""A network on a real photograph: whether it is equal to eager torch, how fast it is and, with weights, what it recognises."""

from pathlib import Path

import torch

from ..reports import info
from . import bench, photo

FROZEN = (torch.float32, torch.bfloat16)


def run(name, model, image, weights, batches, seconds, chart, progress, device):
    """Prints the report, saves the chart; True if every output is within the error budget. `progress` is a Progress."""
    step, clear = progress.step, progress.clear
    for fact, value in info.environment().items():
        print(f"{fact:<17} {value}")
    x = image[None].to(device)
    print(f"\nlogits of {name}, {'weights from ' + str(weights) if weights else RANDOM}:")
    frozen = bench.freezable(device, FROZEN)
    print(bench.equality_line(bench.EQUALITY))
    equality = []
    for row in bench.equality(model, x, frozen, step):
        clear()
        print(bench.equality_line(row), flush=True)
        equality.append(row)
    if weights:
        print("\n" + top5(model, x))
    rows, timings = [], {}
    for batch in batches:
        some_rows, timings[batch] = bench.speed(model, x.repeat(batch, 1, 1, 1), frozen, seconds, step)
        rows += some_rows
    print("\n" + bench.speed_text(rows))
    step("drawing the chart")
    draw(f"{name} at {photo.CROP}x{photo.CROP}", timings, chart, device)
    print(f"\nchart: {chart}")
    return all(row["verdict"] != "NOT EQUAL" for row in equality)


RANDOM = "random weights and batch-norm statistics (--weights takes a checkpoint)"


@torch.no_grad()
def top5(model, x):
    share, classes = model(x).softmax(1)[0].topk(min(5, model.fc.out_features))
    names = _class_names(model.fc.out_features)
    return "\n".join(f"{100 * s:5.1f} %  {names[c]}" for s, c in zip(share.tolist(), classes.tolist(), strict=True))


def _class_names(count):
    """ImageNet's as torchvision has them, else numbers."""
    try:
        from torchvision.models import ResNet34_Weights

        names = ResNet34_Weights.DEFAULT.meta["categories"]
    except Exception:  # a torchvision built for another torch fails with whatever its extension raises
        names = []
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def draw(title, timings, path, device):
    """Bars of images/s per batch, with the 20th and 80th percentile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(timings), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (batch, results) in zip(figure.subplots(1, len(timings), squeeze=False)[0], timings.items(), strict=True):
        labels = [f"{name} {dtype}".replace(", ", "\n") for name, dtype in results]
        rate = [batch / t.median for t in results.values()]
        spread = [
            [r - batch / t.p80 for r, t in zip(rate, results.values(), strict=True)],
            [batch / t.p20 - r for r, t in zip(rate, results.values(), strict=True)],
        ]
        bars = axes.barh(labels, rate, xerr=spread, color=["0.7" if "eager" in name else "C0" for name in labels])
        axes.bar_label(bars, [f"{r:.1f}" for r in rate], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set(title=f"batch {batch}", xlabel="images/s (median, p20 to p80)")
    machine = info.environment()["gpu" if device == "cuda" else "cpu"]
    figure.suptitle(f"{title}; {machine}; torch {torch.__version__}", fontsize=9)
    figure.savefig(Path(path), dpi=150)
