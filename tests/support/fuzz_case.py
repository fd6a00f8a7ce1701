"""One network, one input, one step: fused and eager each against float64.

`python tests/support/fuzz_case.py '{...}'` repeats a case.

The eager side is torchvision's own blocks, so a mistake that our blocks and our reference shared would be seen too.
"""

import copy
import functools
import json
import sys
from dataclasses import asdict, dataclass

import torch
from foreign import tv_resnet
from torch import nn

import resnet_fused
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.modules.zero_pad import ZeroPadShortcut
from resnet_fused.reports.verify.masks import ReluMasks, WithMasks

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """Lists name the modules or parameters, by their number, that something is done to."""

    holder: str = "ours"  # or "converted": torchvision's blocks; "by plan": those that do not run our forward
    block: str = "BasicBlock"
    stages: tuple = ((8, 1, 1),)  # (width, blocks, stride) each
    stem: tuple = (8, 3, 1)  # width, kernel, stride
    groups: int = 1
    zero_pad: bool = False
    shape: tuple = (2, 9, 9)  # batch, height, width
    dtype: str = "float32"
    autocast: bool = False
    channels_last: tuple = (False, False)  # of the input, of the weights
    training: bool = True
    eval_norms: tuple = ()
    frozen: tuple = ()
    hooked: tuple = ()
    norm: tuple = (1e-5, 0.1, True)  # eps, momentum, track_running_stats
    offset: float = 0.0  # mean of the input; its standard deviation is 1
    seed: int = 0

    def line(self):
        return f"python tests/support/fuzz_case.py '{json.dumps(asdict(self))}'"

    def values_per_channel(self):
        """Of the last map: with only a few, batch norm is ill-conditioned and its error meaningless."""
        batch, *sides = self.shape
        for stride in (self.stem[2], *(stride for _, _, stride in self.stages)):
            sides = [-(-side // stride) for side in sides]
        return batch * sides[0] * sides[1]


class _Ended:
    """A block with something of its own behind it: convert() runs it by a plan and not by our forward."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.end = nn.Identity()

    def forward(self, x):
        return self.end(super().forward(x))


class _Blocks:
    """What tv_resnet defines, ended."""

    BasicBlock = type("BasicBlock", (_Ended, tv_resnet.BasicBlock), {})
    Bottleneck = type("Bottleneck", (_Ended, tv_resnet.Bottleneck), {})


def network(case, blocks):
    """`blocks`: the module that defines BasicBlock and Bottleneck."""
    torch.manual_seed(case.seed)
    eps, momentum, track = case.norm
    norm = functools.partial(nn.BatchNorm2d, eps=eps, momentum=momentum, track_running_stats=track)
    block, (planes, kernel, stride) = getattr(blocks, case.block), case.stem
    parts = [nn.Conv2d(3, planes, kernel, stride, kernel // 2, bias=False), norm(planes), nn.ReLU(inplace=True)]
    for width, count, stage_stride in case.stages:
        for i in range(count):
            stride, out, shortcut = (stage_stride if i == 0 else 1), width * block.expansion, None
            if stride != 1 or planes != out:
                if case.zero_pad and out >= planes:
                    shortcut = ZeroPadShortcut(planes, out, stride)
                else:
                    shortcut = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), norm(out))
            groups = {"groups": case.groups, "base_width": 64 // case.groups} if case.block == "Bottleneck" else {}
            parts.append(block(planes, width, stride, shortcut, norm_layer=norm, **groups))
            planes = out
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(planes, 4))
    with_lively_norms(model, case.seed)
    model.train(case.training).to(DTYPES[case.dtype])
    if case.channels_last[1]:
        model.to(memory_format=torch.channels_last)
    norms, parameters = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)], list(model.parameters())
    for i in case.eval_norms:
        norms[i % len(norms)].eval()
    for i in case.frozen:
        parameters[i % len(parameters)].requires_grad_(False)
    return model


def hook(case, model):
    """Registers the hooks of `case` and returns the list of their calls."""
    calls, modules = [], list(model.named_modules())
    for i in case.hooked:
        name, module = modules[i % len(modules)]
        module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, tuple(out.shape))))
    return calls


def step(case, model, x, mode):
    """(output, gradients, buffers)"""
    x = x.detach().clone().requires_grad_()
    low = case.autocast and x.dtype == torch.float32
    with mode, torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = model(x)
    (out.double() * torch.arange(1, 5)).square().mean().backward()
    grads = [t.grad for t in (x, *model.parameters())]
    return out.detach(), grads, [b for b in model.buffers() if b.is_floating_point()]


def share(ours, eager, oracle, oracle_eager, dtype):
    """Of three times eager's own error, all tensors of a group together; not more than 1 is right.

    Three and not two, and one norm: a random network may be small and ill-conditioned, and 2,000 draws find the tail of
    the distribution, where the rounding of eager is lucky. A mistake is a factor of a hundred.
    """
    keep = [i for i, t in enumerate(eager) if t is not None]
    ours, eager, oracle, oracle_eager = (
        torch.cat([group[i].double().flatten() for i in keep] or [torch.zeros(1).double()])
        for group in (ours, eager, oracle, oracle_eager)
    )
    if not eager.isfinite().all():
        return 0.0 if not ours.isfinite().all() else float("inf")
    floor = (16 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps * oracle.norm()
    return ((ours - oracle).norm() / (3 * (eager - oracle_eager).norm() + floor + 1e-12)).item()


def check(case):
    """Raises AssertionError, with the line that repeats the case, unless fused is as right as eager."""
    eager_model = network(case, _Blocks if case.holder == "by plan" else tv_resnet)
    exact_model = copy.deepcopy(eager_model).double()
    if case.holder != "ours":
        model = resnet_fused.convert(copy.deepcopy(eager_model))
    else:
        model = network(case, resnet_fused)
        model.load_state_dict(eager_model.state_dict())
    x = torch.randn(case.shape[0], 3, *case.shape[1:]) + case.offset
    x = x.to(DTYPES[case.dtype])
    if case.channels_last[0]:
        x = x.contiguous(memory_format=torch.channels_last)
    calls = [hook(case, m) for m in (model, eager_model)]
    our_masks, eager_masks = ReluMasks(), ReluMasks()
    ours, eager = step(case, model, x, our_masks), step(case, eager_model, x, eager_masks)
    exact = [step(case, copy.deepcopy(exact_model), x.double(), WithMasks(m.masks)) for m in (our_masks, eager_masks)]
    assert calls[0] == calls[1], f"hooks saw {calls[0]}, in eager {calls[1]}\n{case.line()}"
    assert [g is None for g in ours[1]] == [g is None for g in eager[1]], f"other gradients are None\n{case.line()}"
    low = torch.bfloat16 if case.autocast else DTYPES[case.dtype]
    for what, i in (("output", 0), ("gradients", 1), ("buffers", 2)):
        groups = [part[i] if i else [part[i]] for part in (ours, eager, *exact)]
        for a, b in zip(groups[0], groups[1], strict=True):
            assert b is None or (a.dtype == b.dtype and a.shape == b.shape), f"{what}: {a.dtype}\n{case.line()}"
        used = share(*groups, low)
        assert used <= 1, f"{what}: {used:.2f} of the error budget\n{case.line()}"


def from_json(text):
    return Case(**{k: _tuples(v) for k, v in json.loads(text).items()})


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    check(from_json(sys.argv[1]))
    print("fused is as right as eager")
