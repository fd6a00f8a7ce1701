"""Engines as files: safetensors with the weights and, in its header, JSON with the network and what was measured.

Nothing is unpickled: the file holds tensors and text. What was measured is taken over where the same kernels can run;
elsewhere the layer is measured again.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from ..measure import remembered
from ..modules.zero_pad import ZeroPadShortcut
from .network import pool_of, stages

FORMAT = 1
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
PARTS = ("conv1", "bn1", "maxpool", "avgpool", "fc")
BLOCK_PARTS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample")


def _describe(name, module):
    if module is None:
        return None
    if type(module) is nn.Sequential:
        return [_describe(f"{name}.{i}", child) for i, child in enumerate(module)]
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
    kind = BY_NAME[described["kind"]]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "kind"})


class _Block(nn.Module):
    def __init__(self, described):
        super().__init__()
        for name, part in described.items():
            self.add_module(name, _build(part))

    def forward(self, x):
        numbers = [i for i in (1, 2, 3) if getattr(self, f"conv{i}", None) is not None]
        out = x
        for i in numbers:
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            out = out if i == numbers[-1] else torch.relu(out)
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Network(nn.Module):
    """A ResNet from its description, module by module: what an engine reads its weights from."""

    def __init__(self, described):
        super().__init__()
        for name in PARTS:
            self.add_module(name, _build(described[name]))
        for i, layer in enumerate(described["layers"]):
            self.add_module(f"layer{i + 1}", nn.Sequential(*map(_Block, layer)))

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for _, blocks in stages(self):
            x = blocks(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _network(model):
    layers = [
        [
            {part: _describe(f"{name}.{j}.{part}", getattr(block, part, None)) for part in BLOCK_PARTS}
            for j, block in enumerate(blocks)
        ]
        for name, blocks in stages(model)
    ]
    parts = {name: getattr(model, name) for name in PARTS if name != "maxpool"} | {"maxpool": pool_of(model)}
    return {name: _describe(name, part) for name, part in parts.items()} | {"layers": layers}


def save(engine, path):
    """Writes `engine` to `path`, at once or not at all. What is saved is the model as it is now: the engine is refreshed.

    Raises TypeError for a network with parts that a file cannot describe (named), ValueError without safetensors.
    """
    engine.refresh()
    model = engine._model
    header = {
        "format": FORMAT, "dtype": engine.dtype_name, "shape": engine.example_shape,
        "options": engine.options, "network": _network(model),
        "measured": {key: entry._asdict() for key, entry in engine.entries.items()},
    }  # fmt: skip
    wanted = _Network(header["network"]).state_dict()
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if name in wanted}
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        _safetensors().torch.save_file(tensors, name, metadata={KEY: json.dumps(header)})
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load_engine(path, device=None):
    """The engine that `engine.save(path)` wrote.

    Args:
        path: a file of `save`.
        device: where it runs; None: a CUDA device for an engine that was frozen on one, else the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, one of a later format, or an engine for a device that is not here.
    """
    header, tensors = _read(Path(path))
    static = "graph" in header["options"]
    device = torch.device(device or ("cuda" if static and header["options"]["graph"] else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"load_engine: {path} was frozen for a CUDA device, and torch sees none here")
    if device.type == "cuda" and not static:
        raise ValueError(f"load_engine: {path} was frozen for CPUs; freeze the model on {device} instead")
    model = _Network(header["network"]).eval()
    model.load_state_dict(tensors)
    model.to(device, tensors["conv1.weight"].dtype)
    entries = {key: remembered.Entry(**entry) for key, entry in header["measured"].items()}
    example = torch.randn(header["shape"], generator=torch.Generator().manual_seed(0)).to(device)
    from .fp8.engine import freeze_fp8
    from .freeze import freeze
    from .gpu.engine import freeze_static

    with remembered.given(entries):
        if header["dtype"] == "fp8":  # with the scales and errors of its calibration: the example here is noise
            return freeze_fp8(model, example, **header["options"])
        dtype = getattr(torch, header["dtype"])
        return (freeze_static if static else freeze)(model, example, dtype=dtype, **header["options"])


def _read(path):
    if not path.is_file():
        raise FileNotFoundError(f"load_engine: no such file: {path}")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, "pt") as f:
            header = json.loads((f.metadata() or {})[KEY])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except Exception as e:  # safetensors' own error class is not exported by every version
        raise ValueError(f"load_engine: {path} is not a file of engine.save ({type(e).__name__}: {e})") from e
    if header["format"] != FORMAT:
        raise ValueError(f"load_engine: {path} has format {header['format']}, this package reads format {FORMAT}")
    return header, tensors


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as e:
        raise ValueError("engines are kept in files by the package safetensors: pip install safetensors") from e
    return safetensors
