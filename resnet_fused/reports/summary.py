"""The paper's table of a network: layers, output sizes, parameters, multiply-adds; and which fused ops run each layer here."""

import copy

import torch
from torch import nn

from . import table
from .explain import explain

COLUMNS = {
    "layer": "layer", "kernels": "kernel sizes", "output": "output", "parameters": "parameters", "flops": "FLOPs",
    "fused": "fused kernels",
}  # fmt: skip


class Summary:
    """`rows`: dicts with the keys of COLUMNS, repeated blocks in one row; `str()` is a table. Totals: the last row."""

    def __init__(self, rows):
        self.rows = rows

    def __str__(self):
        shown = [
            {**row, "parameters": f"{row['parameters']:,}", "flops": f"{row['flops']:,}"} for row in self.rows
        ]  # fmt: skip
        return f"{table.render(COLUMNS, shown)}\nFLOPs: multiply-adds of convolutions and matrix products, one image"


def summarize(model, x):
    """The `Summary` of a ResNet of this package on inputs like `x` [N, 3, H, W], in its present mode.

    Shapes and multiply-adds come from a copy on the meta device, the kernels from `explain` (which runs the model once).

    Raises:
        TypeError: `model` has no `layer1`, or is not an nn.Module.
    """
    if not isinstance(getattr(model, "layer1", None), nn.Sequential):
        raise TypeError(f"summary: {type(model).__name__} is not a ResNet: it has no layer1 of blocks")
    facts = _facts(model, x)
    kernels = explain(model, x).rows
    rows = []
    for name, module in _steps(model):
        inside = [fact for path, fact in facts.items() if path == name or path.startswith(f"{name}.")]
        if not inside:
            continue  # the forward does not call it
        row = {
            "layer": name,
            "kernels": "; ".join(_kernel_sizes(module)) or type(module).__name__,
            "output": facts[name]["output"],
            "parameters": sum(p.numel() for p in module.parameters()) + _norm_of_stem(model, name),
            "flops": sum(fact["flops"] for fact in inside),
            "fused": _fused(name, kernels),
        }
        previous = rows[-1] if rows else None
        same = ("kernels", "output", "flops", "fused")
        if previous and name.startswith("layer") and all(previous[key] == row[key] for key in same):
            previous["parameters"] += row["parameters"]
            previous["repeats"] += 1
            continue
        rows.append(row | {"repeats": 1})
    return Summary([_merged(row) for row in rows] + [_total(model, rows, facts)])


def _steps(model):
    """(name, module) of the rows: every block, and what stands before and after the blocks. bn1 and relu belong to conv1."""
    for name, module in model.named_children():
        if name.startswith("layer"):
            yield from ((f"{name}.{i}", block) for i, block in module.named_children())
        elif name not in ("bn1", "relu"):
            yield name, module


def _norm_of_stem(model, name):
    return sum(p.numel() for p in model.bn1.parameters()) if name == "conv1" else 0


def _facts(model, x):
    """{path: output size and multiply-adds for one image} of every module that runs."""
    meta, facts = copy.deepcopy(model).to("meta"), {}
    for path, module in meta.named_modules():

        def note(module, args, out, path=path):
            per_output = {nn.Conv2d: lambda m: m.weight[0].numel(), nn.Linear: lambda m: m.in_features}.get(
                type(module)
            )
            size = "x".join(map(str, out.shape[1:]))
            facts[path] = {"output": size, "flops": per_output(module) * out[0].numel() if per_output else 0}

        module.register_forward_hook(note)
    with torch.no_grad():
        meta(torch.empty(1, *x.shape[1:], device="meta", dtype=x.dtype))
    return facts


def _kernel_sizes(module):
    """Such as "3x3, 64, /2", for the convolutions and pools in `module`, in the paper's notation."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            groups = f", {m.groups} groups" if m.groups > 1 else ""
            stride = f", /{m.stride[0]}" if m.stride[0] > 1 else ""
            yield f"{m.kernel_size[0]}x{m.kernel_size[1]}, {m.out_channels}{groups}{stride}"
        elif isinstance(m, nn.MaxPool2d):
            yield f"{m.kernel_size}x{m.kernel_size} max pool, /{m.stride}"
        elif isinstance(m, nn.AdaptiveAvgPool2d):
            yield "average pool"
        elif isinstance(m, nn.Linear):
            yield f"{m.out_features}-d fc"


def _fused(name, kernels):
    """Such as "2 conv_bn_relu (cuda)": the fused ops of the step `name`, and the backends that run them."""
    names = ("stem", "conv1", "bn1") if name == "conv1" else (name,)
    ops = []
    for row in kernels:
        if row["name"] in names and row["backend"] == "modules":
            return f"by modules: {row['reason']}"
        if row["name"].startswith(tuple(f"{n}{sign}" for n in names for sign in ".+")):
            ops.append(f"{row['op']} ({row['backend']})")
    return ", ".join(f"{ops.count(op)} {op}" for op in dict.fromkeys(ops)) or "-"


def _merged(row):
    repeats = row.pop("repeats")
    if repeats > 1:
        name, _, first = row["layer"].rpartition(".")
        row["layer"] = f"{name}.{first}-{int(first) + repeats - 1}"
        row["kernels"] = f"[{row['kernels']}] x {repeats}"
        row["flops"] *= repeats
    return row


def _total(model, rows, facts):
    return {
        "layer": "all", "kernels": "", "output": facts[""]["output"], "fused": "",
        "parameters": sum(p.numel() for p in model.parameters()), "flops": sum(f["flops"] for f in facts.values()),
    }  # fmt: skip
