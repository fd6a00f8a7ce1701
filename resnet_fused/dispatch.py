"""Which backend runs an op, and why. A pure question: nothing here launches or allocates.

`cuda`: compiled CUDA kernels. `triton`: Triton kernels. `native`: compiled CPU passes. `torch`: for convolutions, torch's
own convolution followed by one fused pass of another backend. `eager`: torch's own operators, unfused: the fallback.
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import _env, launch, layout, native

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    backend: str
    reason: str


class FallbackError(RuntimeError):
    """STRICT mode: an op would have run eagerly."""


class Backend(NamedTuple):
    """How a backend is asked: `why_not()` says why it cannot run here (None: it can), `takes(device_type)`, and
    `kernel(stem, op)` is the function that launches `op`."""

    why_not: Callable[[], str | None]
    takes: Callable[[str], bool]
    kernel: Callable | None


@functools.cache
def _without_triton():
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() and not _env.TRITON_INTERPRET:
        return "no CUDA device (TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly)"
    return None


@functools.cache
def _without_cuda():
    if (why := native.why_absent()) is not None:
        return why
    if not native.has_cuda():
        return "the compiled library has no CUDA part (nvcc was not found when it was built)"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _compiled_kernel(stem, op):
    kernel = getattr(native.namespace(), op)
    # The stable ABI cannot read torch's flags, so the library is told.
    return functools.partial(kernel, allow_tf32=tf32_allowed()) if op.startswith("conv") else kernel


def _triton_kernel(stem, op):
    return getattr(importlib.import_module(f"{__package__}.kernels.{stem}"), op)


# A backend proven elsewhere (the emulator of the tests) is added here by its owner.
BACKENDS = {
    "cuda": Backend(_without_cuda, lambda device: device == "cuda", _compiled_kernel),
    "triton": Backend(
        _without_triton, lambda device: device == "cuda" or (device == "cpu" and _env.TRITON_INTERPRET), _triton_kernel
    ),
    "native": Backend(native.why_absent, lambda device: device == "cpu", _compiled_kernel),
    "torch": Backend(lambda: None, lambda device: True, None),
    "eager": Backend(lambda: None, lambda device: True, None),
}

# Process-wide, not a ContextVar: autograd runs the backward of CUDA tensors in threads of its own, which must see it.
_state = {"backend": _env.BACKEND, "strict": _env.STRICT, "rows": None}


@contextlib.contextmanager
def _set(key, value):
    before = _state[key]
    _state[key] = value
    try:
        yield value
    finally:
        _state[key] = before


def backend(name):
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
    if (why := BACKENDS[name].why_not()) is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {why}")


def strict(on=True):
    """Context manager: inside it a fallback to eager raises FallbackError (on) or is allowed (off)."""
    return _set("strict", on)


def record():
    """Context manager yielding a list to which every op that runs adds (op, (shape, dtype, format), Choice)."""
    return _set("rows", [])


def backends():
    """{name: "available" or why not} for every backend."""
    return {name: b.why_not() or "available" for name, b in BACKENDS.items()}


def _unfit(x, others):
    """Why no kernel can take these tensors, or None."""
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}"
    if x.numel() == 0:
        return "empty"
    for t in others:
        if t is not None and t.dtype != x.dtype:
            return f"dtypes {x.dtype} and {t.dtype}"
    if layout.format_of(x) is None:
        return f"strides {tuple(x.stride())} of shape {tuple(x.shape)}"
    return None


def _automatic(op, x):
    conv = op.startswith("conv")
    if x.device.type == "cuda":
        # Unmeasured defaults: compiled kernels where they exist; for the convolution in IEEE float32 torch's own,
        # since tensor cores do not help there.
        if conv and x.dtype == torch.float32 and not tf32_allowed():
            return Choice("torch", "IEEE float32: cuDNN's convolution, then one fused pass (predicted, not measured)")
        if (without_cuda := _without_cuda()) is None:
            return Choice("cuda", "default on CUDA devices (predicted, not measured)")
        if (why := _without_triton()) is None:
            return Choice("triton", f"no compiled CUDA kernels: {without_cuda}")
        return Choice("eager", f"{without_cuda}; {why}")
    if x.device.type == "cpu":
        if (why := native.why_absent()) is not None:
            return Choice("eager", why)
        if conv:
            return Choice("torch", "CPU: oneDNN's convolution, then one fused pass")
        return Choice("native", "default on CPUs")
    return Choice("eager", f"device {x.device.type}")


def choose(op, x, *others):
    """The backend for `op` on `x` and the tensors that must match it (None among them is skipped)."""
    name = _state["backend"]
    if (why := _unfit(x, others)) is not None:
        choice = Choice("eager", why)
    elif name == "auto":
        choice = _automatic(op, x)
    elif name not in BACKENDS or not BACKENDS[name].takes(x.device.type):
        choice = Choice("eager", f"backend {name!r} does not take {x.device.type} tensors")
    elif name == "native" and op.startswith("conv"):
        choice = Choice("torch", "backend 'native': torch's convolution, then one fused pass")
    elif name == "torch" and not op.startswith("conv"):
        choice = _automatic(op, x)
    else:
        choice = Choice(name, f"backend {name!r} was asked for")
    if op.startswith("conv") and choice.backend not in ("torch", "eager") and not layout.is_channels_last(x):
        choice = Choice("torch", "contiguous NCHW: torch's convolution, then one fused pass")
    return note(op, x, choice)


def choose_conv_stats(x, weight, out):
    """The backend of a convolution with batch statistics in its epilogue; "torch": a convolution, then another pass.

    The kernel cannot cut its reduction (statistics need finished sums), so below half a wave of tiles it leaves a GPU idle
    and torch's split convolution wins, for all that the other pass costs (predicted, not measured).
    """
    tiles = -(-out.numel() // out.shape[1] // 128) * -(-out.shape[1] // 128)
    if x.device.type == "cuda" and _state["backend"] == "auto" and tiles < launch.SMS // 2:
        return note(
            "conv_stats", x, Choice("torch", f"{tiles} tiles are too few for the kernel (predicted, not measured)")
        )
    return choose("conv_stats", x, weight)


def note(op, x, choice):
    """Records `choice`, and in STRICT mode refuses a fallback that nobody asked for."""
    if (rows := _state["rows"]) is not None:
        rows.append((op, (tuple(x.shape), x.dtype, layout.format_of(x)), choice))
    if choice.backend == "eager" and _state["strict"] and choice.reason != "empty" and _state["backend"] != "eager":
        raise FallbackError(f"{op}: would fall back to eager ({choice.reason})")
    return choice


def kernel(choice, stem, op):
    """The function of backend `choice` that launches `op`, whose kernels live under `stem`."""
    return BACKENDS[choice.backend].kernel(stem, op)


def tf32_allowed():
    """Whether torch would let a float32 convolution use TF32, by its flags at this moment."""
    precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    if precision in ("tf32", "ieee"):
        return precision == "tf32"
    return torch.backends.cudnn.allow_tf32
