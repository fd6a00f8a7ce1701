"""Engines as files, and as bytes for pickle and copy: safetensors with the weights. The header has JSON with the steps of
the network and the measurements.

Nothing is unpickled: the file holds tensors and text. The measurements are used where the same kernels can run. Where
they cannot, the layer is measured again.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..measure import remembered
from ..modules.zero_pad import ZeroPadShortcut
from . import network
from .network import Apply, ConvBn, Head, Network

FORMAT = 2
KEY = "resnet_fused"
# Modules that a file can describe: their constructor's arguments are attributes of the same names.
KINDS = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.BatchNorm2d: ("num_features", "eps", "affine"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Linear: ("in_features", "out_features"),
    nn.Identity: (),
    ZeroPadShortcut: ("in_planes", "out_planes", "stride"),
}
BY_NAME = {kind.__name__: kind for kind in KINDS}
STEPS = {kind.__name__: kind for kind in (ConvBn, Apply, Head)}
# The fields of a step in a file: all except the shape and the notes of an engine.
FIELDS = {
    ConvBn: ("name", "conv", "bn", "input", "residual", "output", "relu", "pool"),
    Apply: ("name", "module", "input", "output"),
    Head: ("avgpool", "fc", "input", "output"),
}


class Contents(NamedTuple):
    """The contents of a file: the arguments that the engine was made with, the measurements, and the network with its
    weights."""

    dtype: str
    shape: list
    options: dict
    measured: dict
    model: nn.Module


def _describe(name, module):
    if type(module) not in KINDS:
        raise TypeError(f"save: {name} is a {type(module).__name__}, which a file cannot describe")
    described = {"kind": type(module).__name__, **{key: getattr(module, key) for key in KINDS[type(module)]}}
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        described["bias"] = module.bias is not None
    return described


def _build(described):
    if described is None:
        return None
    if isinstance(described, list):
        return nn.Sequential(*map(_build, described))
    if "kind" not in described:  # format 1: a network or a block, its parts under their names
        module = nn.Module()
        for name, part in described.items():
            module.add_module(name, _build(part))
        return module
    kind = BY_NAME[described["kind"]]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"})


def _described_step(step):
    values = {field: getattr(step, field) for field in FIELDS[type(step)]}
    names = {"conv": step.name, "module": step.name}
    parts = {f: _describe(names.get(f, f), v) if isinstance(v, nn.Module) else v for f, v in values.items()}
    return {"step": type(step).__name__} | parts


def _built_step(described):
    kind = STEPS[described["step"]]
    parts = {f: _build(described[f]) if isinstance(described[f], dict) else described[f] for f in FIELDS[kind]}
    return kind(**parts)


def as_bytes(engine):
    """`engine` as the bytes of a file. The engine is refreshed first, so they have the model's present weights.

    Raises TypeError for a network with parts that a file cannot describe (named), and ValueError without safetensors.
    """
    engine.refresh()
    header = {
        "format": FORMAT, "dtype": engine.dtype_name, "shape": engine.example_shape, "options": engine.options,
        "network": [_described_step(step) for step in engine._steps],
        "measured": {key: entry._asdict() for key, entry in engine.entries.items()},
    }  # fmt: skip
    tensors = {name: t.detach().cpu().contiguous() for name, t in Network(engine._steps).state_dict().items()}
    return _safetensors().torch.save(tensors, metadata={KEY: json.dumps(header)})


def save(engine, path):
    """Writes `as_bytes(engine)` to `path`. A failure leaves no partial file."""
    data, path = as_bytes(engine), Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with open(handle, "wb") as unfinished:
            unfinished.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(path):
    """The Contents of a file of `save`, on the CPU. Raises FileNotFoundError, and ValueError where the file was not
    made by `save`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_engine: no such file: {path}")
    return contents(path.read_bytes(), path)


def contents(data, source):
    """The Contents of the bytes of a file. source: where they come from, for messages."""
    header, tensors = _read(data, source)
    with torch.device("cpu"):  # not the default device, which may be another
        model = _network(header, tensors)
    dtype = next(t.dtype for name, t in tensors.items() if name.endswith("weight"))
    measured = {key: remembered.Entry(**entry) for key, entry in header["measured"].items()}
    return Contents(header["dtype"], header["shape"], header["options"], measured, model.eval().to(dtype))


def _network(header, tensors):
    """The network of a file, with its weights."""
    described = header["network"]
    if header["format"] == 1:
        layers = {f"layer{i}": blocks for i, blocks in enumerate(described.pop("layers"), 1)}
        named = _build(described | layers)
        named.load_state_dict(tensors)
        return Network(network.read(named))
    model = Network([_built_step(step) for step in described])
    model.load_state_dict(tensors)
    return model


def _read(data, source):
    safetensors = _safetensors()
    try:
        tensors = safetensors.torch.load(data)
        # The format of safetensors: the length of a text in eight bytes, and the text, which is JSON.
        text = data[8 : 8 + int.from_bytes(data[:8], "little")]
        header = json.loads(json.loads(text).get("__metadata__", {})[KEY])
    except Exception as e:  # safetensors does not export its own error class in every version
        raise ValueError(f"load_engine: {source} is not a file of engine.save ({type(e).__name__}: {e})") from e
    if header["format"] not in (1, FORMAT):
        raise ValueError(
            f"load_engine: {source} has format {header['format']}, this package reads formats 1 and {FORMAT}"
        )
    return header, tensors


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as e:
        raise ValueError("engines are kept in files by the package safetensors: pip install safetensors") from e
    return safetensors
