"""convert(model): fused blocks inside a model that somebody else wrote, and unconvert(model): exactly back.

A module is recognised by what its forward computes (tracing.py, plan.py), never by its name. Conversion replaces one
thing, the class of the block, by a subclass of it with a fused forward. Parameters, buffers, children, hooks, modes,
attributes and keys stay the very same objects, so optimizers, DDP and checkpoints notice nothing; `isinstance` still holds,
copies and pickles stay converted, and what cannot be fused at a call runs the forward of the original class.
"""

import copyreg
import functools

import torch
from torch import nn

from . import ops
from .blocks import _watched, conv_bn_relu, norm_relu, why_not_convolution, why_not_fused, why_not_relu
from .norms import why_not_here, why_not_norm
from .ops.conv_bn_relu import out_shape
from .plan import FUNCTIONS, AddRelu, Call, Chain, Function, fill, plan_of
from .resnet import BasicBlock, Bottleneck, ResNet
from .tracing import NotTraceable, is_norm, see_through


def convert(model, *, strict=False):
    """Fuses, in place, every module of `model` whose forward has chains of convolution, batch norm and ReLU.

    Args:
        model: any nn.Module: a ResNet of torchvision, timm or one's own, or a model with one inside.
        strict: raise instead of leaving a module alone that has convolutions and batch norms.

    Returns:
        `model` itself. `explain(model, x)` tells what each block runs, and why some were left alone.

    Raises:
        TypeError: `model` is not an nn.Module.
        RuntimeError: `strict` and a module that cannot be fused; it names them all, and nothing has been changed.

    Not thread-safe: no other thread may run torch modules meanwhile (torch.fx patches nn.Module while it traces).
    """
    _check_module(model, "convert")
    found, refused, inside = [], [], set()
    for name, module in candidates(model):
        if id(module) in inside:
            continue
        try:
            found.append((module, plan_for(module)))
            inside |= _sequences_of(*found[-1])
        except NotTraceable as e:
            refused.append(f"{name or 'the model itself'} ({type(module).__name__}): {e}")
    if strict and refused:
        raise RuntimeError(f"convert: {len(refused)} modules cannot be fused: " + "; ".join(refused))
    for module, plan in found:
        module.__class__ = _class_for(type(module), repr(plan), plan)
    return model


def unconvert(model):
    """Gives every converted module its own class back, in place; returns `model`. See `convert`."""
    _check_module(model, "unconvert")
    for module in model.modules():
        if is_converted(module):
            object.__setattr__(module, "__class__", type(module)._origin)
    return model


def is_converted(module):
    return isinstance(module, Fused)


def candidates(model):
    """(name, module) of what might be fused: not ours yet, with a convolution and a norm among the children.

    Parents come first. A plain sequence without a ReLU, such as a projection shortcut, is a part of its block only.
    """
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, Fused) and type(module)._plan is not None:
            inside |= _sequences_of(module, type(module)._plan)
        if (
            id(module) in inside
            or isinstance(module, (Fused, BasicBlock, Bottleneck, ResNet))
            or type(module).forward is nn.Module.forward
        ):
            continue
        parts = list(_called_children(module))
        if type(module) is nn.Sequential and not any(isinstance(m, nn.ReLU) for m in parts):
            continue
        if any(isinstance(m, nn.Conv2d) for m in parts) and any(is_norm(m) for m in parts):
            yield name, module


def why_not_converted(module):
    """Why `convert` leaves `module` alone, or None."""
    try:
        plan_for(module)
    except NotTraceable as e:
        return str(e)
    return None


def plan_for(module):
    """The plan of a module that is not converted. Raises NotTraceable with the reason."""
    origin = type(module)
    if "forward" in module.__dict__:
        raise NotTraceable("its forward was replaced on the instance")
    if isinstance(module, torch.jit.ScriptModule):
        raise NotTraceable("it is a ScriptModule: convert the model, then trace it")
    if isinstance(module, torch.fx.GraphModule):
        raise NotTraceable("it is a GraphModule: convert the model, then trace it with its blocks as leaves")
    if origin.__reduce_ex__ is not object.__reduce_ex__ or origin.__reduce__ is not object.__reduce__:
        raise NotTraceable("its class pickles itself in its own way")
    try:
        plan = plan_of(module, origin)
        _class_for(origin, repr(plan), plan)
    except NotTraceable as e:
        raise NotTraceable(f"its forward {e}") from e
    except TypeError as e:  # a class that refuses subclasses, by its metaclass or __init_subclass__
        raise NotTraceable(f"its class cannot be extended ({e})") from e
    return plan


def _sequences_of(module, plan):
    """The ids of the sequences that `plan` runs itself."""
    return {id(_child(module, path)) for path, kind in plan.parts if kind.startswith("sequence")}


def _called_children(module):
    for child in module.children():
        yield child
        if see_through(child):
            yield from _called_children(child)


def _check_module(model, function):
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model should be an nn.Module, got {type(model).__name__}")


class Fused:
    """What a converted module has before its own class. `_origin` and `_plan` are attributes of the class, not of it."""

    _origin = _plan = None

    def why_not_fused(self, x):
        """Why the module runs the forward of its own class on `x`, or None."""
        return why_not_run(self, x)

    def forward(self, x):
        if self.why_not_fused(x):
            return self.forward_by_modules(x)
        return run(self, x)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name not in ("training", "why_not_fused"):
            _plan_again(self)

    def __delattr__(self, name):
        super().__delattr__(name)
        if name != "why_not_fused":
            _plan_again(self)

    def add_module(self, name, module):
        super().add_module(name, module)
        _plan_again(self)

    def __reduce_ex__(self, protocol):
        make, (_, *arguments), *rest = super().__reduce_ex__(max(protocol, 2))
        if make is not copyreg.__newobj__:
            raise TypeError(f"a converted {type(self).__name__} cannot be pickled; unconvert it first")
        return _make_again, (type(self)._origin, type(self)._plan, *arguments), *rest


def _make_again(origin, plan, *arguments):
    cls = _class_for(origin, repr(plan), plan)
    return cls.__new__(cls, *arguments)


def _plan_again(module):
    """After a change from outside: `forward` of the original class may do something else now."""
    cls = type(module)
    try:
        plan, why = plan_of(module, cls._origin), None
    except NotTraceable as e:
        plan, why = None, str(e)
    if plan != cls._plan or why is not None:
        object.__setattr__(module, "__class__", _class_for(cls._origin, repr(plan), plan, why))


@functools.cache
def _class_for(origin, plan_text, plan, why=None):
    """The subclass of `origin` that runs `plan`; one for all modules alike. `plan_text` keeps 1, 1.0 and True apart."""
    namespace = {
        "_origin": origin, "_plan": plan, "_why": why, "forward_by_modules": origin.forward,
        "__module__": origin.__module__, "__qualname__": origin.__qualname__, "__doc__": origin.__doc__,
    }  # fmt: skip
    if (ours := _ours(plan)) is not None:
        namespace |= {"forward": ours.forward, "why_not_fused": ours.why_not_fused}
    return type(origin)(origin.__name__, (Fused, origin), namespace)


def _ours(plan):
    """The class of this package that runs exactly `plan`, or None: its forward is what gets the fastest kernels."""
    return None if plan is None else _known().get(repr(plan.steps))


@functools.cache
def _known():
    examples = [
        block(4, 4, downsample=shortcut) for block in (BasicBlock, Bottleneck) for shortcut in (None, _projection())
    ]
    examples.append(ResNet(BasicBlock, [0, 0, 0, 0]))
    return {repr(plan_of(m, type(m)).steps): type(m) for m in examples}


def _projection():
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))


def _child(module, path):
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _why_not_part(part, kind, x):
    if kind.startswith("sequence"):
        return None if type(part) is nn.Sequential and kind == f"sequence of {len(part)}" else f"is no {kind} any more"
    if kind == "identity":
        return None if type(part) is nn.Identity else f"is a {type(part).__name__} by now"
    if kind == "conv":
        return why_not_convolution(part)
    if kind == "relu":
        return why_not_relu(part)
    if kind == "bn with relu" and (_watched(part.act) or _watched(part.drop)):
        return "has an activation with a hook"
    return why_not_norm(part, relu=kind == "bn with relu") or why_not_here(part, x)


def why_not_run(module, x):
    """Why the plan of a converted `module` does not apply to `x` now, or None."""
    plan = type(module)._plan
    if plan is None:
        return f"its forward {type(module)._why}"
    if (why := why_not_fused(x)) is not None:
        return why
    for name in plan.absent:
        if getattr(module, name) is not None:
            return f"{name} was None when the module was converted"
    for path, kind in plan.parts:
        part = _child(module, path)
        if part is None:
            return f"{path} is gone"
        if _watched(part):
            return f"{path} carries a hook"
        if (why := _why_not_part(part, kind, x)) is not None:
            return f"{path} {why}"
    return None


def run(module, x):
    """The plan of a converted `module` on `x`."""
    plan = type(module)._plan
    values = [x]
    for step in plan.steps:
        values.append(_RUN[type(step)](module, step, values))
    return fill(plan.output, values)


def _run_chain(module, step, values):
    norm = _child(module, step.norm)
    x = values[step.x.index]
    residual = None if step.residual is None else values[step.residual.index]
    conv = None if step.conv is None else _child(module, step.conv)
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
        shape = out_shape(x, conv.weight, conv.stride, conv.padding, conv.dilation)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
    return residual.shape == shape and residual.dtype == dtype


def _run_add(module, step, values):
    x, residual = values[step.x.index], values[step.residual.index]
    if not step.in_place and (x.shape != residual.shape or x.dtype != residual.dtype):
        return torch.relu(x + residual)
    return ops.add_relu(x, residual)


def _run_call(module, step, values):
    return _child(module, step.path)(*fill(step.args, values), **fill(step.kwargs, values))


def _run_function(module, step, values):
    args, kwargs = fill(step.args, values), fill(step.kwargs, values)
    if step.name.startswith("."):
        return getattr(args[0], step.name[1:])(*args[1:], **kwargs)
    return FUNCTIONS[step.name](*args, **kwargs)


_RUN = {Chain: _run_chain, AddRelu: _run_add, Call: _run_call, Function: _run_function}
