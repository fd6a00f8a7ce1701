"""Checkpoints that a power cut cannot spoil: a new one is written beside the old one, flushed to the disk, and renamed."""

import os
import pickle
import zipfile
from pathlib import Path

import torch

from . import CannotTrain

FORMAT = 1
KEYS = {"format", "settings", "classes", "model", "optimizer", "scaler", "ema", "epoch", "step", "rows", "sums"}


def save(path, state):
    """Replaces the checkpoint at `path` by `state`. If the machine stops meanwhile, the old one is still whole."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)  # flushed too: it holds the new name
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path):
    """The state saved at `path`, on the CPU. Raises CannotTrain."""
    if not Path(path).is_file():
        raise CannotTrain(f"--resume: no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CannotTrain(f"--resume: {path} is not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise CannotTrain(f"--resume: {path} is not a checkpoint of this trainer")
    if state["format"] != FORMAT:
        raise CannotTrain(f"--resume: {path} has format {state['format']}, this version reads {FORMAT}")
    return state


def check(state, settings, classes):
    """Raises CannotTrain if the run that was saved is not the one that was asked for."""
    if state["classes"] != list(classes):
        raise CannotTrain(
            f"--resume: the checkpoint has {len(state['classes'])} classes, the data {len(classes)} (or others)"
        )
    for name, before in state["settings"].items():
        if settings[name] != before:
            what = "--" + name.replace("_", "-") if name != "processes" else name
            raise CannotTrain(f"--resume: the run was started with {what} {before}, not {settings[name]}")
