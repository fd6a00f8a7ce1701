"""memory(model, shape): the bytes a training step keeps for its backward pass, block by block. Nothing is allocated.

The model runs on fake tensors, which have shapes and storages but no memory. Counted are the distinct storages that autograd
saves, without those of parameters, for three ways to run: module by module in torch's own operators, fused, and fused with
`memory_efficient`. Memory that is used only for a moment, such as a convolution's workspace, is not counted.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import dispatch
from ..measure.oracle import by_modules
from . import table

COLUMNS = {"name": "block", "eager": "eager MB", "fused": "fused MB", "efficient": "memory_efficient MB"}
WAYS = tuple(COLUMNS)[1:]


class Report:
    """`eager`, `fused`, `efficient`: bytes. `rows`: a dict per block with the keys of COLUMNS, in bytes. `str()`: a table
    in megabytes (10^6 bytes) with the shares of eager's in its last line."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.eager, self.fused, self.efficient = (sum(row[way] for row in rows) for way in WAYS)

    def __str__(self) -> str:
        total = {"name": "all", **{way: getattr(self, way) for way in WAYS}}
        lines = [{"name": r["name"], **{way: f"{r[way] / 1e6:.2f}" for way in WAYS}} for r in (*self.rows, total)]
        shares = (
            f"share of eager's: fused {self.fused / self.eager:.3f}, memory_efficient {self.efficient / self.eager:.3f}"
        )
        return f"{table.render(COLUMNS, lines)}\n{shares} (computed)"


def memory(model: nn.Module, shape: Sequence[int], dtype: torch.dtype | None = None) -> Report:
    """What a training step of `model` on an input of `shape` keeps for its backward pass.

    Args:
        model: a `ResNet`, also one that `convert` made; it is neither run nor changed. Modes, frozen parameters and an
            autocast around the call count.
        shape: [N, 3, H, W].
        dtype: of the input; default: that of the model's parameters.

    Raises:
        ValueError: `shape` is not four positive numbers.
        TypeError: `model` has no `memory_efficient`, so it is not a `ResNet`.
    """
    if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shape should be four positive numbers [N, C, H, W], got {tuple(shape)}")
    if not hasattr(model, "memory_efficient"):
        raise TypeError(f"model should be a resnet_fused.ResNet, got {type(model).__name__}")
    fused, efficient = copy.deepcopy(model), copy.deepcopy(model)
    for way, efficiently in ((fused, False), (efficient, True)):
        way.__dict__["memory_efficient"] = efficiently  # by setattr a converted network would match its forward anew
    dtype = dtype or next(model.parameters()).dtype
    found = {way: _saved(m, shape, dtype) for way, m in zip(WAYS, (by_modules(model), fused, efficient), strict=True)}
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    return Report([{"name": name, **{way: found[way].get(name, 0) for way in WAYS}} for name in names])


def _saved(model, shape, dtype):
    """{block: bytes} that a forward pass saves. Each storage counts once, for the block that saves it first."""
    blocks, seen, at = {}, set(), ["stem"]
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, dispatch.strict(False):
        for module in model.modules():
            for kind in (module._parameters, module._buffers):
                for name, t in kind.items():
                    if t is not None:
                        kind[name] = mode.from_tensor(t)
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def pack(t):
            storage = t.untyped_storage()
            if storage._cdata not in own | seen:
                seen.add(storage._cdata)
                blocks[at[0]] = blocks.get(at[0], 0) + storage.nbytes()
            return t

        names = {id(layer): name for name, layer in model.named_children()}
        run_layer = model._fused_layer

        def watched_layer(layer, x):  # in place of a hook, which would switch fusion off
            at[0] = names[id(layer)]
            return run_layer(layer, x)

        model.__dict__["_fused_layer"] = watched_layer
        device = next(model.parameters()).device
        x = torch.empty(shape, dtype=dtype, device=device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
    del out
    return blocks
