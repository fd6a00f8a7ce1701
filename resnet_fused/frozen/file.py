"""Engines as files, and as bytes for pickle and copy: safetensors with the weights. The header has JSON with the steps of
the network and the measurements.

Nothing is unpickled: the file holds tensors and text. The measurements are used where the same kernels can run. Where
they cannot, the layer is measured again.
"""

import json
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..measure import remembered
from ..modules.zero_pad import ZeroPadShortcut
from . import format_1
from .function import NAMES, Constant, Function, Value, function_of
from .gate import Gate
from .network import Apply, ConvBn, Head, Network

FORMAT = 3
KEY = "resnet_fused"
# Modules that a file can describe: their constructor's arguments are attributes of the same names.
KINDS = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.BatchNorm2d: ("num_features", "eps", "affine"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Linear: ("in_features", "out_features"),
    nn.Identity: (),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveMaxPool2d: ("output_size",),
    nn.Conv1d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.ZeroPad2d: ("padding",),
    nn.Upsample: ("size", "scale_factor", "mode", "align_corners"),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid), ()),
    Gate: ("relu",),
    ZeroPadShortcut: ("in_planes", "out_planes", "stride"),
}
BY_NAME = {kind.__name__: kind for kind in KINDS}
STEPS = {kind.__name__: kind for kind in (ConvBn, Apply, Head)}
# The fields of a step in a file: all except the shape and the notes of an engine.
FIELDS = {
    ConvBn: ("name", "conv", "bn", "input", "residual", "output", "relu", "pool", "unary"),
    Apply: ("name", "module", "inputs", "output"),
    Head: ("avgpool", "fc", "input", "output", "name"),
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
    if isinstance(module, Function):
        if isinstance(module.target, nn.Module):
            target = _describe(name, module.target)
        elif (target := module.name) is None:
            raise TypeError(f"save: {name} is {module.extra_repr()}, which a file cannot describe")
        return {"kind": "Function", "target": target, "args": _text(module.args), "kwargs": _text(module.kwargs)}
    if type(module) is nn.Sequential:
        return [_describe(name, part) for part in module]
    if type(module) is Constant:
        return {"kind": "Constant", "shape": list(module.value.shape)}
    if type(module) not in KINDS:
        raise TypeError(f"save: {name} is a {type(module).__name__}, which a file cannot describe")
    described = {"kind": type(module).__name__, **{key: getattr(module, key) for key in KINDS[type(module)]}}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.LayerNorm)):
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
    if described["kind"] == "Function":
        target = described["target"]
        target = _build(target) if isinstance(target, dict) else _named(target)
        return Function(target, _untext(described["args"]), _untext(described["kwargs"]))
    if described["kind"] == "Constant":
        return Constant(torch.empty(described["shape"], device="cpu"))
    kind = BY_NAME[described["kind"]]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"})


def _named(name):
    if name not in NAMES:
        raise ValueError(f"load_engine: the file calls {name!r}, which is not among the functions that a file may name")
    return name[1:] if name.startswith(".") else function_of(name)


def _text(template):
    """A template as JSON: lists of a kind and items, and plain constants."""
    if isinstance(template, Value):
        return ["value", template.index]
    if isinstance(template, dict):
        kind = "ordered" if isinstance(template, OrderedDict) else "dict"
        return [kind, [[key, _text(item)] for key, item in template.items()]]
    if isinstance(template, slice):
        return ["slice", [_text(item) for item in (template.start, template.stop, template.step)]]
    if isinstance(template, (tuple, list)) and not hasattr(template, "_fields"):
        return ["tuple" if isinstance(template, tuple) else "list", [_text(item) for item in template]]
    if template is None or isinstance(template, (bool, int, float, str)):
        return template
    raise TypeError(f"save: the network uses a {type(template).__name__}, {template}, which a file cannot describe")


def _untext(text):
    if not isinstance(text, list):
        return text
    kind, items = text
    if kind == "value":
        return Value(items)
    if kind in ("dict", "ordered"):
        return {"dict": dict, "ordered": OrderedDict}[kind]((key, _untext(item)) for key, item in items)
    made = [_untext(item) for item in items]
    return slice(*made) if kind == "slice" else tuple(made) if kind == "tuple" else made


def _described_step(step):
    values = {field: getattr(step, field) for field in FIELDS[type(step)]}
    names = {"conv": step.name, "module": step.name}
    parts = {f: _describe(names.get(f, f), v) if isinstance(v, nn.Module) else v for f, v in values.items()}
    return {"step": type(step).__name__} | parts


def _is_module(described):
    return isinstance(described, dict) or (isinstance(described, list) and described and isinstance(described[0], dict))


def _built_step(described):
    kind = STEPS[described["step"]]
    if kind is Apply and "input" in described:  # format 2
        described = described | {"inputs": [described["input"]]}
    fields = [field for field in FIELDS[kind] if field in described]  # format 2 has no `unary`, no name of a head
    parts = {f: _build(described[f]) if _is_module(described[f]) else described[f] for f in fields}
    if kind is Apply:
        parts["inputs"] = tuple(parts["inputs"])
    return kind(**parts)


def as_bytes(engine):
    """`engine` as the bytes of a file. The engine is refreshed first, so they have the model's present weights.

    Raises TypeError for a network with parts that a file cannot describe (named), and ValueError without safetensors.
    """
    engine.refresh()
    header = {
        "format": FORMAT, "dtype": engine.dtype_name, "shape": engine.example_shape, "options": engine.options,
        "network": [_described_step(step) for step in engine._steps], "result": _text(engine._result),
        "measured": {key: entry._asdict() for key, entry in engine.entries.items()},
    }  # fmt: skip
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in Network(engine._steps, engine._result).state_dict().items()
    }
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
        return Network(*format_1.read(named))
    steps = [_built_step(step) for step in described]
    model = Network(steps, _untext(header["result"]) if "result" in header else Value(steps[-1].output))
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
    if header["format"] not in range(1, FORMAT + 1):
        raise ValueError(
            f"load_engine: {source} has format {header['format']}, this package reads formats 1 to {FORMAT}"
        )
    return header, tensors


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as e:
        raise ValueError("engines are kept in files by the package safetensors: pip install safetensors") from e
    return safetensors
