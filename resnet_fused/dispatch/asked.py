"""What was asked of the dispatcher, and who listens: backends by name, STRICT mode, records of what runs."""

import contextlib
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from ..kernels import env, layout
from ..kernels.table import BACKENDS, EAGER
from .able import state, why_not_here


class Choice(NamedTuple):
    backend: str
    reason: str
    config: dict | None = None  # the launch configuration that was measured fastest, if not the default


class FallbackError(RuntimeError):
    """STRICT mode: an op would have run eagerly."""


# Process-wide, not a ContextVar: autograd runs the backward of CUDA tensors in threads of its own, which must see it.
_state = {"backend": env.BACKEND, "strict": env.STRICT, "rows": None, "keys": None, "config": None}


@contextlib.contextmanager
def _set(key, value):
    before = _state[key]
    _state[key] = value
    try:
        yield value
    finally:
        _state[key] = before


def backend(name: str) -> AbstractContextManager[str]:
    """Context manager: every op inside uses backend `name` ("auto" lets the dispatcher choose).

    Raises ValueError for an unknown name and RuntimeError for a backend that cannot run here.
    """
    check_backend(name)
    return _set("backend", name)


def check_backend(name):
    if name == "auto":
        return
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, not {name!r}")
    if (why := why_not_here(BACKENDS[name])) is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {why}")


def configured(config):
    """Context manager: a launch configuration for the backend that was asked for; for those who measure."""
    return _set("config", config)


def asked_for():
    """The backend that every op must use, or "auto"."""
    return _state["backend"]


def configuration():
    """The launch configuration that was asked for, or None."""
    return _state["config"]


def strict(on: bool = True) -> AbstractContextManager[bool]:
    """Context manager: inside it a fallback to eager raises FallbackError (on) or is allowed (off)."""
    return _set("strict", on)


def record():
    """Context manager yielding a list to which every op that runs adds (op, (shape, dtype, format), Choice)."""
    return _set("rows", [])


def record_keys():
    """Context manager yielding a list to which every op that runs adds the key of its tuning entry."""
    return _set("keys", [])


def observed():
    """Whether somebody records what runs, op by op."""
    return _state["rows"] is not None or _state["keys"] is not None


def backends(device: torch.device | str | None = None) -> dict[str, str]:
    """{name: "available", or why not} for every backend.

    Args:
        device: a torch.device or its name; default: every device of this machine, of which one is enough.

    What the check of a GPU's kernels has refused there follows after "available". This function checks nothing itself.
    """
    device = None if device is None else torch.device(device)
    return {name: state(backend, device) for name, backend in BACKENDS.items()}


def note_key(key):
    """Gives the key of a tuning entry to `record_keys`, if somebody records."""
    if (keys := _state["keys"]) is not None:
        keys.append(key())


def note(op, x, choice, asked=False):
    """Records `choice`, and in STRICT mode refuses a fallback to eager unless it was asked for or measured."""
    if (rows := _state["rows"]) is not None:
        rows.append((op, (tuple(x.shape), x.dtype, layout.format_of(x)), choice))
    if choice.backend == EAGER.name and _state["strict"] and choice.reason != "empty" and not asked:
        raise FallbackError(f"{op}: would fall back to eager ({choice.reason})")
    return choice
