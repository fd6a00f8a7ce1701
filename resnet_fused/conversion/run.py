"""How a converted module runs its program, and when it does not: every call looks at the children anew."""

import torch
from torch import nn

from .. import ops
from ..kernels.shapes import out_shape
from ..modules import training
from ..modules.eligible import (
    is_sequence,
    watched,
    why_not_convolution,
    why_not_input,
    why_not_relu,
)
from ..modules.evaluation import conv_bn_relu, norm_relu
from ..modules.norms import why_not_here, why_not_norm
from .attributes import child, why_not_current
from .program import FUNCTIONS, AddRelu, Attribute, Call, Chain, Function, fill


def _why_not_part(part, kind, x):
    """Why `part` is no longer what the program took it for, or None; `kind`: a word of `Program.parts`."""
    if kind.startswith("sequence"):
        return None if is_sequence(part) and kind == f"sequence of {len(part)}" else f"is no {kind} any more"
    if kind == "identity":
        return None if type(part) is nn.Identity else f"is a {type(part).__name__} by now"
    if kind == "conv":
        return why_not_convolution(part)
    if kind == "relu":
        return why_not_relu(part)
    if kind == "bn with relu" and (watched(part.act) or watched(part.drop)):
        return "has an activation with a hook"
    return why_not_norm(part, relu=kind == "bn with relu") or why_not_here(part, x)


def why_not_run(module, x):
    """Why the program of a converted `module` does not apply to `x` now, or None."""
    program = type(module)._program
    if program is None:
        return f"its forward {type(module)._why}"
    if (why := why_not_input(x) or why_not_as_converted(module)) is not None:
        return why
    for path, kind in program.parts:
        part = child(module, path)
        if part is None:
            return f"{path} is gone"
        if watched(part):
            return f"{path} carries a hook"
        if (why := _why_not_part(part, kind, x)) is not None:
            return f"{path} {why}"
    return None


def why_not_as_converted(module):
    """What the program of a converted `module` depends on, besides its parts, and has changed since it was traced, or None."""
    cls = type(module)
    if (why := cls._why_not_code()) is not None:
        return why
    if cls._own is not cls and (why := _overridden(cls)) is not None:
        return why
    for name in cls._program.absent:
        if getattr(module, name) is not None:
            return f"{name} was None when the module was converted"
    return why_not_current(module, cls._program)


def _overridden(cls):
    """What a class that somebody derived from a converted one defines anew and the code behind the program calls, or
    None."""
    for derived in cls.__mro__[: cls.__mro__.index(cls._own)]:
        for name in derived.__dict__:
            if not name.startswith("__") and cls._reads(name):
                return f"{derived.__qualname__} overrides {name}"
    return None


def run(module, x):
    """The program of a converted `module` on `x`."""
    program, block = type(module)._program, type(module)._block
    if block is not None and (chain := _chain_of(module, block)) and training.route(x, [chain]) == "training":
        return training.residual(x, [chain])
    values = [x]
    for step in program.steps:
        values.append(_RUN[type(step)](module, step, values))
    return fill(program.output, values)


def _chain_of(module, block):
    """The modules of a ResidualBlock as `training.route` takes them, or None where one between them computes something now."""
    for path in block.between:
        part = child(module, path)
        nothing = type(part) is nn.Identity or (is_sequence(part) and len(part) == 0)
        if not nothing or watched(part):
            return None
    main = [(child(module, conv), child(module, norm)) for conv, norm in block.main]
    return main, block.projection and tuple(child(module, path) for path in block.projection)


def _run_chain(module, step, values):
    norm = child(module, step.norm)
    x = values[step.x.index]
    residual = None if step.residual is None else values[step.residual.index]
    conv = None if step.conv is None else child(module, step.conv)
    if residual is None or step.in_place or _same_kind(x, conv, residual):
        return (
            norm_relu(x, norm, residual, step.relu)
            if conv is None
            else conv_bn_relu(x, conv, norm, residual, step.relu)
        )
    out = norm_relu(x, norm, relu=False) if conv is None else conv_bn_relu(x, conv, norm, relu=False)
    return torch.relu(out + residual)


def _same_kind(x, conv, residual):
    """Whether `out + residual` has the shape and dtype of out = conv(x), as `out += residual` always has."""
    shape, dtype = x.shape, x.dtype
    if conv is not None:
        shape = out_shape(x.shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
    return residual.shape == shape and residual.dtype == dtype


def _run_add(module, step, values):
    x, residual = values[step.x.index], values[step.residual.index]
    if not step.in_place and (x.shape != residual.shape or x.dtype != residual.dtype):
        return torch.relu(x + residual)
    return ops.add_relu(x, residual)


def _run_call(module, step, values):
    return child(module, step.path)(*fill(step.args, values), **fill(step.kwargs, values))


def _run_function(module, step, values):
    args, kwargs = fill(step.args, values), fill(step.kwargs, values)
    if step.name.startswith("."):
        return getattr(args[0], step.name[1:])(*args[1:], **kwargs)
    return FUNCTIONS[step.name](*args, **kwargs)


def _run_attribute(module, step, values):
    return child(module, step.path)


_RUN = {Chain: _run_chain, AddRelu: _run_add, Call: _run_call, Attribute: _run_attribute, Function: _run_function}
