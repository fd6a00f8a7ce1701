"""A run of residual blocks as one call of the compiled library, which runs the same kernels in the same order.

The passes of ResNet-34's step are 300. From Python each takes 10 to 25 us, longer than a small kernel. The dispatcher is
asked once for all passes of a run with such shapes, formats and settings. Where it chooses something else for one of them,
or somebody watches, `residual.py` runs them one by one.
"""

from typing import NamedTuple

import torch

from ... import dispatch
from ...kernels import layout, torch_convolution
from ...kernels.backend import IN_TRAINING
from ...kernels.shapes import Convolution, convolution_of
from . import encoding

_FORWARD, _BACKWARD = IN_TRAINING
_remembered = dispatch.Remembered()  # {run of blocks: _Calls or None}


class _Calls(NamedTuple):
    forward: object
    backward: object
    own: list  # for each convolution, whether the backend's kernel runs it; else torch


def forward(x, tensors, numbers, eps, groups):
    """What the op `residual_blocks` returns without `recompute`, or None where its passes run one by one."""
    calls = _calls(x, tensors, numbers, eps, groups)
    return None if calls is None else calls.forward(x, tensors, numbers, eps, calls.own)


def backward(grad, x, y, tensors, saved, numbers, eps, groups, want_x, wanted):
    """What the op `residual_blocks_backward` returns, or None."""
    calls = _calls(x, tensors, numbers, eps, groups)
    if calls is None:
        return None
    grad_x, more, *grads = calls.backward(grad, x, y, tensors, saved, numbers, eps, want_x, list(map(int, wanted)))
    # No pass reads the two summands of grad_x after this line, so torch adds them in float32 and rounds once.
    return [grad_x.add_(more) if want_x else grad_x, *grads]


def _calls(x, tensors, numbers, eps, groups):
    if dispatch.observed() or groups.strip(","):
        return None
    weights = [(t.shape, t.stride(), t.dtype) for t in tensors if t.dim() == 4]
    answers, run = _remembered.answers(x.device, x.dtype), (x.shape, x.stride(), tuple(numbers), *weights)
    if run not in answers:
        answers[run] = _asked(x, encoding.decode(tensors, numbers, eps, groups))
    return answers[run]


def _asked(x, blocks):
    """The _Calls for the blocks, or None."""
    if (found := dispatch.for_blocks(x.device, (_FORWARD,))) is None or layout.format_of(x) is not layout.CHANNELS_LAST:
        return None
    backend, own = found[0], []
    for block in blocks:
        h = x
        for unit in block.units:
            if (h := _output(backend, h, unit, own)) is None:
                return None
        if (shortcut := x if block.projection is None else _output(backend, x, block.projection, own)) is None:
            return None
        if shortcut.shape != h.shape:
            return None
        x = h
    return _Calls(backend.kernels[_FORWARD], backend.kernels[_BACKWARD], own)


def _output(backend, x, unit, own):
    """A tensor like the output of the unit's convolution of x, after `own` got whether the backend's kernel runs it; None
    where something else than that, torch's convolution and the backend's passes would run."""
    weight, conv = unit.weight, convolution_of(x, unit.weight, *unit.convolution, unit.groups)
    if min(conv.out_shape) < 1 or not torch_convolution.trains(conv, x.device.type):
        return None
    z = torch.empty(conv.out_shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
    if layout.format_of(z) is not layout.CHANNELS_LAST:
        return None  # dense in both formats: the passes decide
    if unit.mean is None:
        choice = dispatch.choose_conv_stats(x, weight, conv)
    else:
        choice = dispatch.picked("conv_stats", x, weight, convolution=conv)
    own.append(choice.backend == backend.name and unit.mean is None)
    if choice.config or not (own[-1] or dispatch.kernel(choice, "conv") is None):
        return None
    k, c, r, s = weight.shape
    transposed = Convolution(z.shape, (c, k, r, s), *conv[2:])
    gradients = dispatch.choose_conv_input_grad(z, weight, transposed), dispatch.choose_conv_weight_grad(z, x, conv)
    if any(choice.backend != dispatch.TORCH.name for choice in gradients):
        return None
    passes = [
        ("bn_stats", z), ("bn_relu", z, None), ("bn_relu", z, z), ("bn_add_bn_relu", z, z),
        *((f"bn_relu_backward_{part}", z, *rest) for part in ("reduce", "apply") for rest in ((z, z), (z, None), (None, z))),
    ]  # fmt: skip
    return z if all(dispatch.pick(*one)[0].backend == backend.name for one in passes) else None
