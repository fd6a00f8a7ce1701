"""Whether a fused network came out of a way as the eager one did: the numbers, the strides, the order, the random numbers."""

import warnings
from typing import NamedTuple

import torch
from fuzz_case import share

import resnet_fused


class Result(NamedTuple):
    """What can be seen afterwards: {group: [(name, value)]} of tensors and other values, or the error."""

    groups: dict
    error: Exception | None
    net: object


def attempt(way, net):
    error, found = None, None
    with warnings.catch_warnings(), resnet_fused.strict(False):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        try:
            found = way.act(net)
        except Exception as e:  # whatever torch raises is the result
            error = e
    random = torch.rand(1).item()
    model = net.model
    grads = [("x", net.x.grad)] + [(name, p.grad) for name, p in model.named_parameters()]
    groups = {
        "outputs": [(f"output {i}", t) for i, t in enumerate([*net.outs, *(found if isinstance(found, list) else [])])],
        "gradients": [(f"gradient of {name}", t) for name, t in grads],
        "parameters": list(model.named_parameters()),
        "buffers": list(model.named_buffers()),
        "seen": [(f"value {i} that was seen", t) for i, t in enumerate(net.seen)],
        "rest": [("the next random number", random), ("the keys", list(model.state_dict()))]
        + [(f"the mode of {name}", m.training) for name, m in model.named_modules()],
    }
    return Result(groups, error, net)


class Different(AssertionError):
    """Numbers that differ by more than rounding."""


def one_line(error):
    return f"{type(error).__name__}: {str(error)[:300]}"


def strides(t):
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def compare(way, ours, eager, exact):
    """Raises AssertionError unless `ours` is `eager`, judged by `exact`."""
    for group, values in eager.groups.items():
        names, others = ([name for name, _ in r.groups[group]] for r in (eager, ours))
        assert names == others, f"{group} are {others}, in eager {names}"
        numbers = []
        for i, (name, a) in enumerate(values):
            b, c = ours.groups[group][i][1], exact.groups[group][i][1]
            if not isinstance(a, torch.Tensor):
                assert a == b, f"{name} is {b}, in eager {a}"
                continue
            assert isinstance(b, torch.Tensor), f"{name} is {b}, in eager a tensor"
            facts = [(t.dtype, t.shape, t.device, t.requires_grad) for t in (b, a)]
            assert facts[0] == facts[1], f"{name} is {facts[0]}, in eager {facts[1]}"
            if group == "gradients":
                owner = dict(ours.net.model.named_parameters()).get(name.removeprefix("gradient of "), ours.net.x)
                assert strides(b) in (strides(a), strides(owner)), (
                    f"{name} has strides {b.stride()}, in eager {a.stride()}"
                )
            else:
                assert strides(b) == strides(a), f"{name} has strides {b.stride()}, in eager {a.stride()}"
            if a.is_floating_point():
                numbers.append([t.detach() for t in (b, a, c, c)])
            else:
                assert torch.equal(a, b), f"{name} is {b}, in eager {a}"
        if numbers and not (ours.net.frozen or way.loose):
            used = share(*zip(*numbers, strict=True), way.low or torch.float32)
            if not used <= 1:
                raise Different(f"{group}: {used:.2f} of the error budget")
        for b, a, *_ in numbers if ours.net.frozen or way.loose else ():
            if not (b - a).norm() <= (way.loose or 1e-3) * a.norm() + 1e-5:
                raise Different(f"{group}: {((b - a).norm() / a.norm()).item():.1g} away from eager")
