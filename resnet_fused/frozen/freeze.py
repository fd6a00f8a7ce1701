"""freeze(model, example): the fastest evaluation of a network, as a snapshot of its weights. load_engine(path): an
engine from a file. Engines are pickled and copied as what they write to a file.

freeze() measures the fastest kernel for every shape of convolution in the network, with the example input. A snapshot
does not follow later changes of the weights: see `Engine.refresh`.
"""

import contextlib
import copyreg
from os import PathLike
from typing import Literal

import torch
from torch import nn

from ..kernels import e4m3 as fp8
from ..measure import remembered
from . import file
from .cpu.engine import CpuEngine, freeze_cpu
from .engine import Engine
from .fp8.engine import Fp8Engine, freeze_fp8
from .gpu.engine import GpuEngine, freeze_gpu


def freeze(
    model: nn.Module,
    example_input: torch.Tensor,
    *,
    dtype: torch.dtype | Literal["fp8"] | None = None,
    exact: bool = False,
    graph: bool = True,
    batch: Literal["exact", "pad"] = "exact",
    memory: Literal["fast", "small"] = "fast",
) -> Engine:
    """An engine that computes `model.eval()(x)` as fast as the device of the model can.

    Args:
        model: a network with convolutions that takes one image tensor: a ResNet, any other classifier, a backbone. It is
            not changed. What a trace cannot show runs as it is, between the frozen parts (docs/guide/freezing.md).
        example_input: [N, C, H, W] on its device; the batch and size to tune for. On a CPU other sizes run too.
        dtype: torch.float32, torch.bfloat16, on a GPU also torch.float16; None: the dtype of the model. "fp8" (or
            torch.float8_e4m3fn), on a GPU of compute capability 8.9 or later: convolutions of 8-bit floats, calibrated on the
            example, outside of the promise of twice eager's error (docs/design/fp8.md).
        exact: CPU: a NaN or an infinity comes out where eager has it. Without it Winograd spreads one to the 16
            outputs of its tile, the matrix unit (AMX, float32) makes an infinity a NaN, and oneDNN's ReLU makes a NaN 0, as
            in `torch.compile` with freezing.
        graph: GPU: capture a CUDA graph; False: launch every kernel by itself.
        batch: GPU: "exact" refuses other batches than that of the example; "pad" fills them up or cuts them in pieces.
        memory: CPU: "small" prefers, for each layer, the kernel with the smallest packed weights among those that take at
            most 1.1 times the time of the fastest.

    Returns:
        An `Engine`: a `CpuEngine`, a `GpuEngine` or an `Fp8Engine`. A GpuEngine is measured beside the live model: where its
        layers are slower, a snapshot of the live model runs in their place, and `rows` says so.

    Raises:
        TypeError: a network without convolutions, with a hook on itself, or whose own forward cannot be traced (named); a
            function of torch that was replaced.
        ValueError: a dtype, a batch policy or an example that does not fit; a layer outside of the error budget (named); a
            forward that does not compute what a trace of it shows.
    """
    device = next(model.parameters()).device
    with _undisturbed(device):
        if fp8.asked(dtype):
            return freeze_fp8(model, example_input, exact=exact, graph=graph, batch=batch)
        if device.type == "cpu":
            return freeze_cpu(model, example_input, dtype=dtype, exact=exact, memory=memory)
        return freeze_gpu(model, example_input, dtype=dtype, graph=graph, batch=batch)


@contextlib.contextmanager
def _undisturbed(device):
    """Context manager: the caller's random numbers stay as they are, and his autocast and inference mode do not reach the
    engine."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        if device.type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def load_engine(path: str | PathLike[str], device: str | torch.device | None = None) -> Engine:
    """The engine that `engine.save(path)` wrote.

    Args:
        path: a file of `save`.
        device: where it runs; None: a CUDA device for an engine that was frozen on one, else the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, one of a later format, or an engine for a device that is not here.
    """
    return _engine(file.load(path), path, device)


def _engine(contents, source, device):
    dtype, shape, options, measured, model = contents
    fixed_shape = "graph" in options
    device = torch.device(device or ("cuda" if options.get("graph") else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"load_engine: {source} was frozen for a CUDA device, and torch sees none here")
    if device.type == "cuda" and not fixed_shape:
        raise ValueError(f"load_engine: {source} was frozen for CPUs; freeze the model on {device} instead")
    model = model.to(device)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device)
    with remembered.given(measured), _undisturbed(device):
        if dtype == "fp8":  # the file has the scales and errors of its calibration; the example here is noise
            return freeze_fp8(model, example, **options)
        return (freeze_gpu if fixed_shape else freeze_cpu)(model, example, dtype=getattr(torch, dtype), **options)


def _restored(data, device):
    return _engine(file.contents(data, "a copy of an engine"), "a copy of an engine", device)


def _reduced(engine):
    return _restored, (file.as_bytes(engine), str(engine.device))


for _kind in (CpuEngine, GpuEngine, Fp8Engine):
    copyreg.pickle(_kind, _reduced)
