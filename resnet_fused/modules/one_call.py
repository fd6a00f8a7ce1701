"""A residual block in evaluation on a CPU as one call of the compiled library, which runs the same kernels in the same order.

Python between two convolutions takes 50 to 100 us when it has gone cold, as much as the smaller convolutions themselves:
live ResNet-34 in bfloat16 at batch 1 took 13.7 ms, 10.2 of them in kernels; torch's modules 12.1 and 11.0 (measured: 2-core
Intel Xeon, torch 2.13, 2026-11-24). The dispatcher is asked once for every convolution of such shapes, formats and
settings; nothing that depends on the values of weights is kept.
"""

import torch
from torch import nn

from .. import dispatch
from ..kernels import cpu, layout
from ..kernels.shapes import Convolution
from ..ops.conv_bn_relu import geometry
from .eligible import is_projection, watched
from .zero_pad import ZeroPadShortcut

_LIBRARY = cpu.BACKEND  # whose op for a whole block runs the kernels that it has for each part
_MOST = 4096  # kinds of calls that are remembered
# kind of call: its numbers for the library, or None where the ops are to run one by one; all under one setting
_known = {}
_setting = None


def evaluate(x, main, downsample):
    """relu(bn(conv(... x)) + shortcut) of modules `main` [(conv, bn), ...] and `downsample`, which `why_not_fused` has
    passed; None where the block has to be run op by op."""
    if not _only_values(x):
        return None
    padded = type(downsample) is ZeroPadShortcut and not watched(downsample)
    if not (downsample is None or padded or is_projection(downsample)):
        return None
    projection = None if padded else downsample
    tensors, eps, convs = [], [], []
    for conv, bn in main if projection is None else (*main, projection):
        c, b = conv.__dict__, bn.__dict__  # attributes of modules ask the class first: 0.5 us each
        parameters, buffers = b["_parameters"], b["_buffers"]
        weight, stride, padding, dilation = c["_parameters"]["weight"], c["stride"], c["padding"], c["dilation"]
        if (
            b["training"]
            or type(bn) is not nn.BatchNorm2d
            or not (type(stride) is type(padding) is type(dilation) is tuple)
        ):
            return None
        mean, var = buffers.get("running_mean"), buffers.get("running_var")  # an attribute may have taken their place
        ours = weight, mean, var, parameters["weight"], parameters["bias"]
        for t in ours:
            if type(t) not in _PLAIN:
                return None
        tensors += ours
        eps.append(b["eps"])
        convs.append((weight.shape, layout.format_of(weight), stride, padding, dilation, c["groups"]))
    memory_format = layout.format_of(x)
    pad = (downsample.in_planes, downsample.out_planes, downsample.stride) if padded else None
    kind = (x.shape, x.dtype, memory_format, projection is None, pad, *eps, *convs)
    try:
        numbers = _remembered(x)[kind]
    except KeyError:
        numbers = _known[kind] = _numbers(
            x, tensors[::5], convs, projection is not None, downsample if padded else None, eps
        )
    if numbers is None:
        return None
    shortcut = layout.in_format(downsample(x), memory_format) if padded else None
    run = torch.ops.resnet_fused_native.residual_block
    return run(x, tensors, numbers, eps, projection is not None, shortcut)


_PLAIN = (torch.Tensor, nn.Parameter)


def _only_values(x):
    """Whether a kernel may be called past torch's dispatcher and past ours."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or type(x) is not torch.Tensor
        or dispatch.observed()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def _remembered(x):
    global _setting
    setting = dispatch.setting(x.device)
    if setting != _setting or len(_known) > _MOST:
        _known.clear()
        _setting = setting
    return _known


def _numbers(x, weights, convs, projects, pad, eps):
    """[stride, padding, dilation, groups, whether Winograd's kernel runs it] of every convolution, flat; None where one of
    them, or a pass, is run by anything else, or where it is left to the ops what the tensors are."""
    memory_format = layout.format_of(x)
    if dispatch.BACKENDS.get(_LIBRARY.name) is not _LIBRARY or _LIBRARY.why_not() is not None:
        return None
    if memory_format is None or x.numel() == 0 or min(eps) <= 0.0:
        return None
    numbers, shape, last = [], x.shape, len(convs) - 1 - projects
    identity = x.shape if pad is None else pad.forward(torch.empty(x.shape, device="meta")).shape
    for i, (weight, (weight_shape, weight_format, *conv, groups)) in enumerate(zip(weights, convs, strict=True)):
        before = x.shape if i > last else shape
        after = geometry(before, weight_shape, *conv, groups)
        if after is None or weight_format is None or weight.dtype != x.dtype:
            return None
        if memory_format == layout.CONTIGUOUS and weight_format == layout.CHANNELS_LAST:
            return None  # the result is channels_last then
        source, result = (torch.empty(s, dtype=x.dtype, memory_format=memory_format) for s in (before, after))
        if any((memory_format == layout.CHANNELS_LAST) != layout.is_channels_last(t) for t in (source, result)):
            return None  # dense in both formats: the ops decide
        residual = result if i == last else None
        convolution = Convolution(before, weight_shape, x.dtype, *conv, groups)
        of_conv, _ = dispatch.pick("conv_bn_relu", source, weight, residual, convolution=convolution)
        of_pass, _ = dispatch.pick("bn_relu", result, residual)
        if of_conv.backend not in (_LIBRARY.name, dispatch.TORCH.name) or of_pass.backend != _LIBRARY.name:
            return None
        numbers += (*sum(conv, ()), groups, of_conv.backend == _LIBRARY.name)
        identity, shape = (after, shape) if i > last else (identity, after)
    return numbers if shape == tuple(identity) else None
