"""What a run writes besides its weights: metrics.csv and curve.png. Each new version replaces the file as a whole."""

import csv
import io
import os
from pathlib import Path

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "ema_accuracy",
    "images_per_s",
)


def _replace(path, data):
    unfinished = Path(f"{path}.unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def write_csv(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    _replace(path, text.getvalue().encode())


def write_curve(path, rows, title):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, what in ((left, "loss"), (right, "accuracy")):
        axes.plot(epochs, [row[f"train_{what}"] for row in rows], label="training", marker=".")
        axes.plot(epochs, [row[f"val_{what}"] for row in rows], label="validation", marker=".")
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    _replace(path, png.getvalue())


def progress_text(epoch, epochs, step, steps, images_per_s, loss):
    filled = 20 * step // steps
    bar = "#" * filled + "." * (20 - filled)
    return f"epoch {epoch}/{epochs} [{bar}] {step}/{steps}  {images_per_s:.0f} images/s  loss {loss:.3f}"
