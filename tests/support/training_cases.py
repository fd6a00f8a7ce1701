"""Blocks in training for the tests: ours and eager from one state, and float64 with the ReLU masks of each."""

import contextlib
import copy
import importlib

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_fused
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.measure.oracle import by_modules, with_lively_norms
from resnet_fused.reports.verify.masks import ReluMasks, WithMasks

X = (3, 3, 40, 40)  # images for `resnets.narrow`


def block(kind, channels=16, stride=1, block=resnet_fused.BasicBlock):
    """kind: identity, projection, bottleneck (with a projection)."""
    torch.manual_seed(3)
    if kind == "bottleneck":
        block, inplanes, planes = resnet_fused.Bottleneck, channels, channels // 4 * 2
    else:
        inplanes, planes = channels, channels * (1 + (kind == "projection"))
    out = planes * block.expansion
    downsample = None
    if kind != "identity":
        downsample = nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return with_lively_norms(block(inplanes, planes, stride, downsample).train())


def data(model, shape, dtype=torch.float32, memory_format=torch.channels_last, device="cpu"):
    torch.manual_seed(5)
    x = torch.randn(shape).to(device, dtype).contiguous(memory_format=memory_format)
    with torch.no_grad():
        grad = torch.randn_like(by_modules(model).to(device)(x.to(next(model.parameters()).dtype)))
    return x, grad.to(dtype)


def frozen(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return model


def odd_modes(model):
    model.layer1[0].bn1.eval()
    model.layer2.eval()
    model.layer3[0].bn1.momentum = None
    model.layer3[0].bn2.track_running_stats = False
    return model


def step(model, x, grad, mode, wants=lambda name: True):
    """(output, {name: gradient}, {name: buffer}) of a forward and backward pass of a copy of `model`."""
    model = copy.deepcopy(model)
    x = x.detach().clone().requires_grad_(wants("x"))
    for name, p in model.named_parameters():
        p.requires_grad_(wants(name))
    with mode:
        out = model(x)
    if out.requires_grad:
        out.backward(grad)
    grads = {name: p.grad for name, p in [("x", x), *model.named_parameters()] if wants(name)}
    return out.detach(), grads, {n: b for n, b in model.named_buffers() if b.is_floating_point()}


def check(model, x, grad, wants=lambda name: True):
    """Every tensor that comes out within twice eager's error against float64; returns ours."""
    our_masks, eager_masks = ReluMasks(), ReluMasks()
    ours = step(model, x, grad, our_masks, wants)
    eager = step(by_modules(model), x, grad, eager_masks, wants)
    wide = by_modules(model).double()
    oracle, oracle_eager = (
        step(wide, exact(x), exact(grad), WithMasks(m.masks), wants) for m in (our_masks, eager_masks)
    )
    assert_within_budget(ours[0], eager[0], oracle[0], "out", oracle_eager=oracle_eager[0])
    assert ours[0].stride() == eager[0].stride()
    assert ours[1].keys() == eager[1].keys()
    for name, g in ours[1].items():
        e, o, oe = eager[1][name], oracle[1][name], oracle_eager[1][name]
        assert (g is None) == (e is None), name
        if g is not None:
            assert g.dtype == e.dtype, name
            dim = 1 if name == "x" else 0
            assert_within_budget(g, e, o, f"grad of {name}", oracle_eager=oe, channel_dim=dim)
    for name, b in ours[2].items():
        assert_within_budget(b, eager[2][name], oracle[2][name], name, oracle_eager=oracle_eager[2][name])
    return ours


@contextlib.contextmanager
def inside(monkeypatch, refuse=lambda func, args, kwargs: False):
    """Yields a list of the operators that run, by name, those inside of the training ops too; `refuse`d ones raise."""
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            if refuse(func, args, kwargs or {}):
                raise AssertionError(f"{func} runs")
            return func(*args, **(kwargs or {}))

    # Through the dispatcher, where modes are off inside of an op, they would see the op alone.
    for name in ("residual", "stem"):
        module = importlib.import_module(f"resnet_fused.ops.training.{name}")
        monkeypatch.setattr(module, "call", lambda op, implementation, *args: implementation(*args))
    with Watch():
        yield names


_ASK = (
    "aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.masked_select", "aten._unique",
    "aten.bincount",
)  # fmt: skip


def asks_the_device(func, args, kwargs):
    """For `inside`: whether an operator makes the host wait for values, so that a step with it cannot be captured."""
    name, source = str(func), args[0] if args else None
    if name.startswith("aten.copy_"):
        source = args[1]
    from_device = isinstance(source, torch.Tensor) and source.device.type != "cpu"
    to = args[0].device if name.startswith("aten.copy_") else kwargs.get("device")
    return name.startswith(_ASK) or (from_device and to is not None and torch.device(to).type == "cpu")
