"""Rows of the matrix: modes, dtypes, hooks, and children that are not what they were."""

import torch
from edits import EDITS, lightly
from matrix import GROUP, backward, row
from torch import nn

GROUP["now"] = "Modes and dtypes"


@row("evaluation, no gradients")
def _(model, x):
    with torch.no_grad():
        return [model(x)]


@row("evaluation with gradients (frozen statistics)")
def _(model, x):
    return backward(model(x), model)


@row("training step")
def _(model, x):
    return [*backward(model.train()(x), model), *model.buffers()]


@row("training with frozen norms (`bn.eval()`, no gradients)")
def _(model, x):
    for m in model.train().modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval().requires_grad_(False)
    return backward(model(x), model)


@row("some norms in training, some in evaluation")
def _(model, x):
    model.layer2[0].train()
    model.layer2[0].bn2.eval()
    return [*backward(model(x), model), *model.buffers()]


@row("`inference_mode`")
def _(model, x):
    with torch.inference_mode():
        return [model(x).clone()]


for dtype in (torch.float16, torch.bfloat16, torch.float64):

    @row(f"`model.to({dtype})`")
    def _(model, x, dtype=dtype):
        with torch.no_grad():
            return [model.to(dtype)(x.to(dtype))]


@row("autocast to bfloat16")
def _(model, x):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return [model(x)]


@row("channels_last")
def _(model, x):
    return backward(model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last)), model)


@row("an empty batch")
def _(model, x):
    return [model(x[:0])]


@row("one value per channel in training")
def _(model, x):
    model.train()
    model.layer2.register_forward_pre_hook(lambda m, args: (args[0][:1, :, :1, :1],))
    return [model(x)]


@row("wrong number of channels")
def _(model, x):
    return [model(x[:, :2])]


@row("an image without a batch")
def _(model, x):
    return [model(x[0])]


GROUP["now"] = "Hooks"
for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
    for part in ("conv1", "relu or act1"):

        @row(f"`{kind}` on {part} of a block")
        def _(model, x, kind=kind, part=part):
            block = model.layer2[0]
            module = block.conv1 if part == "conv1" else getattr(block, "relu", None) or block.act1
            seen = []
            getattr(module, f"register_{kind}")(lambda *args: seen.append(1))
            outs = backward(model(x), model)
            return [*outs, torch.tensor(float(len(seen)))]


@row("`forward_hook` on a block, a stage or the network")
def _(model, x):
    seen = []
    for m in (model, model.layer1, model.layer2[0]):
        m.register_forward_hook(lambda m, args, out: seen.append(out))
    return [model(x), *seen]


@row("global forward hook")
def _(model, x):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(1))
    try:
        return [model(x), torch.tensor(float(len(seen)))]
    finally:
        handle.remove()


GROUP["now"] = "Edited and replaced children (of one block)"
for name, (change, _why) in EDITS.items():

    @row(name)
    def _(model, x, change=change):
        lightly(change, model.layer2[0])
        return backward(model(x), model)
