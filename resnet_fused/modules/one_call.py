"""A residual block in evaluation as one call of the compiled library, which runs the same kernels in the same order.

Python between two convolutions takes 50 to 100 us when it has gone cold, as much as the smaller convolutions themselves:
live ResNet-34 in bfloat16 at batch 1 took 13.7 ms, 10.2 of them in kernels; torch's modules 12.1 and 11.0 (measured: 2-core
Intel Xeon, torch 2.13, 2026-11-24). On a GPU the host has to launch faster than the kernels run. The dispatcher is asked
once for every convolution of such shapes, formats and settings; nothing that depends on the values of weights is kept.
"""

from typing import NamedTuple

import torch
from torch import nn

from .. import dispatch
from ..kernels import layout, torch_convolution
from ..kernels.backend import IN_EVALUATION
from ..kernels.shapes import Convolution
from ..ops.conv_bn_relu import geometry
from .eligible import is_projection, watched
from .zero_pad import ZeroPadShortcut

# The kernels for a whole block. The first runs torch's convolution and a pass where the backend has no convolution.
_WITH_TORCH, _ALONE = IN_EVALUATION
_PLAIN = frozenset((torch.Tensor, nn.Parameter))


class _Layer(NamedTuple):
    """What the choice of a kernel may depend on, of a convolution and the batch norm after it."""

    weight: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format | None
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int
    eps: float

    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups


_EPS = _Layer._fields.index("eps")


class _Block(NamedTuple):
    """What the choice of kernels may depend on, of a block and its input."""

    shape: torch.Size
    dtype: torch.dtype
    memory_format: torch.memory_format | None
    projects: bool
    pad: tuple | None  # the arguments of a ZeroPadShortcut
    low: bool  # whether autocast casts the weights to dtype
    convolutions: list  # of the main path, then that of the projection if there is one


_remembered = dispatch.Remembered()  # {kind of block: call}


def _call_of(device, kind):
    """`_call` of the block on `device` that `kind` describes: (a _Block without convolutions, a _Layer, ...), as plain
    tuples, which are made faster."""
    calls = _remembered.answers(device, kind[0][1])
    try:
        return calls[kind]
    except KeyError:
        block, *convolutions = kind
        calls[kind] = found = _call(device, _Block(*block, [_Layer(*c) for c in convolutions]))
        return found


def evaluate(x, main, downsample):
    """relu(bn(conv(... x)) + shortcut) of modules `main` [(conv, bn), ...] and `downsample`, which `why_not_fused` has
    passed; None where the block has to be run op by op."""
    device = x.device
    if device.type not in ("cpu", "cuda") or not _suits(x, low := torch.is_autocast_enabled(device.type)):
        return None
    pads = type(downsample) is ZeroPadShortcut and not watched(downsample)
    projects = not pads and is_projection(downsample)
    if not (downsample is None or pads or projects):
        return None
    memory_format = layout.format_of(x)
    pad = (downsample.in_planes, downsample.out_planes, downsample.stride) if pads else None
    kind, tensors, eps = [(x.shape, x.dtype, memory_format, projects, pad, low)], [], []
    for conv, bn in (*main, downsample) if projects else main:
        found = _read(conv, bn, tensors)
        if found is None:
            return None
        kind.append(found)
        eps.append(found[_EPS])
    call = _call_of(device, tuple(kind))
    if call is None:
        return None
    kernel, numbers = call
    if low:
        tensors[::5] = [layout.lowered(weight, x.dtype, x) for weight in tensors[::5]]
    shortcut = layout.in_format(downsample(x), memory_format) if pads else None
    return kernel(x, tensors, numbers, eps, projects, shortcut)


def _read(conv, bn, tensors):
    """The fields of a _Layer of two modules, whose five tensors are appended to `tensors`; None where the library does
    not take them. Attributes of modules ask the class first, 0.5 us each, so the modules' dictionaries are read."""
    c, b = conv.__dict__, bn.__dict__
    stride, padding, dilation = c["stride"], c["padding"], c["dilation"]
    if (
        b["training"]
        or type(bn) is not nn.BatchNorm2d
        or not (type(stride) is type(padding) is type(dilation) is tuple)
    ):
        return None
    weight, affine, buffers = c["_parameters"]["weight"], b["_parameters"], b["_buffers"]
    # A plain attribute may have taken the place of a buffer.
    own = weight, buffers.get("running_mean"), buffers.get("running_var"), affine["weight"], affine["bias"]
    if not _PLAIN.issuperset(map(type, own)):
        return None
    tensors += own
    return (
        weight.shape, weight.dtype, layout.format_of(weight), stride, padding, dilation, c["groups"], b["eps"]
    )  # fmt: skip


def _suits(x, low):
    """Whether a kernel may be called past torch's dispatcher and past the one of this package. low: whether autocast is on."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or dispatch.observed()
        # Autocast casts the input of a convolution, but not the shortcut.
        or (low and torch.get_autocast_dtype(x.device.type) != x.dtype)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def _call(device, block):
    """(the kernel for a whole block on `device`, its numbers), or None: another backend runs a convolution or a pass, or only
    the ops can tell what the tensors are.

    The numbers of every convolution, flat: stride, padding, dilation, groups, and one more. For `_WITH_TORCH` it tells
    whether the backend's own kernel runs the convolution; for `_ALONE`, of the first convolution, whether the projection
    runs in its launch.
    """
    if (found := dispatch.for_blocks(device, IN_EVALUATION)) is None:
        return None
    backend, op = found
    if block.memory_format is None or 0 in block.shape or min(c.eps for c in block.convolutions) < 0.0:
        return None
    if block.low:
        block = block._replace(convolutions=[_lowered(c, block, device) for c in block.convolutions])
    numbers, shape, last = [], block.shape, len(block.convolutions) - 1 - block.projects
    identity, paired = block.shape, None
    if block.pad is not None:
        identity = ZeroPadShortcut(*block.pad).forward(torch.empty(block.shape, device="meta")).shape
    for i, convolution in enumerate(block.convolutions):
        before = block.shape if i > last else shape
        after = geometry(before, convolution.weight, *convolution.geometry())
        if after is None or convolution.memory_format is None or convolution.dtype != block.dtype:
            return None
        if block.memory_format == layout.CONTIGUOUS and convolution.memory_format == layout.CHANNELS_LAST:
            return None  # torch's result is channels_last then
        source, result = (
            torch.empty(s, dtype=block.dtype, device=device, memory_format=block.memory_format) for s in (before, after)
        )
        if any((block.memory_format == layout.CHANNELS_LAST) != layout.is_channels_last(t) for t in (source, result)):
            return None  # dense in both formats: the ops decide
        conv = Convolution(before, convolution.weight, block.dtype, *convolution.geometry())
        if op == _WITH_TORCH and torch_convolution.why_wrong_of(conv, device.type) is not None:
            return None  # the library calls torch's own
        weight = torch.empty(
            convolution.weight, dtype=convolution.dtype, device="meta", memory_format=convolution.memory_format
        )
        if i == 0 and op == _ALONE and block.projects and _plain(conv, block.convolutions[-1]):
            paired = _by_kernel(backend, "conv_bn_relu_pair", source, weight, None, conv)
            own = paired
        elif i > last and paired:
            own = True
        else:
            own = _by_kernel(backend, "conv_bn_relu", source, weight, result if i == last else None, conv)
        if own is False and op == _WITH_TORCH:
            residual = result if i == last else None
            own = None if dispatch.pick("bn_relu", result, residual)[0].backend != backend.name else False
        if own is None or (own is False and op == _ALONE):
            return None
        stride, padding, dilation, groups = convolution.geometry()
        numbers += (*stride, *padding, *dilation, groups, own if op == _WITH_TORCH else bool(paired) and i == 0)
        identity, shape = (after, shape) if i > last else (identity, after)
    return (backend.kernels[op], numbers) if shape == tuple(identity) else None


def _lowered(convolution, block, device):
    """The _Layer with a weight that layout.lowered has cast."""
    last = device.type == "cuda" and layout.CHANNELS_LAST in (block.memory_format, convolution.memory_format)
    memory_format = layout.CHANNELS_LAST if last else convolution.memory_format
    if memory_format is not None:
        memory_format = layout.format_of(torch.empty(convolution.weight, device="meta", memory_format=memory_format))
    return convolution._replace(dtype=block.dtype, memory_format=memory_format)


def _plain(first, projection):
    """Whether one op may run both convolutions (modules/evaluation.py)."""
    return projection.padding == (0, 0) and projection.dilation == (1, 1) and first.groups == projection.groups == 1


def _by_kernel(backend, op, source, weight, residual, convolution):
    """Whether the dispatcher chooses the backend's own kernel for a convolution (True), or torch's and then a pass (False);
    None where it chooses anything else."""
    choice, _ = dispatch.pick(op, source, weight, residual, convolution=convolution)
    if choice.backend == backend.name:
        return None if choice.config else True
    return False if choice.backend == dispatch.TORCH.name else None
