"""convert(model): fused blocks inside a model of another library or of one's own. unconvert(model): exactly back.

A module is recognised by what its forward computes (trace.py, match.py), never by its name. Conversion replaces one
thing, the class of the module, by a subclass of it with a fused forward. Parameters, buffers, children, hooks, modes,
attributes and keys stay the very same objects, so optimizers, DDP and checkpoints notice nothing. `isinstance` still holds,
copies and pickles stay converted, and a call that cannot be fused runs the forward of the original class.
"""

from typing import TypeVar

import torch
from torch import nn

from ..models.resnet import BasicBlock, Bottleneck, ResNet
from ..modules.eligible import is_sequence
from ..nn import BNReLU, ConvBNReLU
from .attributes import child
from .classes import Fused, best_program, class_for, match_again, put_back
from .effects import NotTraceable
from .trace import is_norm, see_through

_OURS = (BasicBlock, Bottleneck, ResNet, ConvBNReLU, BNReLU)  # whose forward is fused already

M = TypeVar("M", bound=nn.Module)


def convert(model: M, *, strict: bool = False, memory_efficient: bool = False) -> M:
    """Fuses, in place, every module of `model` whose forward has chains of convolution, batch norm and ReLU.

    Args:
        model: any nn.Module: a ResNet of torchvision, timm or one's own, or a model with one inside.
        strict: raise instead of leaving a module alone that has convolutions and batch norms.
        memory_efficient: networks with the forward of this package's `ResNet` keep less for the backward and compute it
            again (docs/guide/training.md); a network that is converted already takes the new value.

    A module that is converted already is matched again, as is needed after changes of what its forward reads.

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
            found.append((module, program_for(module)))
            inside |= _sequences_of(*found[-1])
        except NotTraceable as e:
            refused.append(f"{name or 'the model itself'} ({type(module).__name__}): {e}")
    if strict and refused:
        raise RuntimeError(f"convert: {len(refused)} modules cannot be fused: " + "; ".join(refused))
    for module in filter(is_converted, model.modules()):
        match_again(module)
    for module, program in found:
        module.__class__ = class_for(type(module), repr(program), program)
    for module in model.modules():
        if is_converted(module) and hasattr(type(module), "_fused_layer"):
            _remember(module, memory_efficient)
    return model


def _remember(module, memory_efficient):
    """Sets `memory_efficient`, the one entry that a conversion may leave in an instance, or takes it away."""
    module.__dict__.pop("memory_efficient", None)
    if memory_efficient:
        module.__dict__["memory_efficient"] = True


def unconvert(model: M) -> M:
    """Gives every converted module its own class back, in place; returns `model`. See `convert`."""
    _check_module(model, "unconvert")
    for module in model.modules():
        if is_converted(module):
            if hasattr(type(module), "_fused_layer"):
                _remember(module, False)
            put_back(module)
    return model


def is_converted(module):
    return isinstance(module, Fused)


def candidates(model):
    """(name, module) of modules that may be worth a conversion: of no class of this package, with a convolution and a norm
    among the children or in sequences among them.

    Parents come first. A sequence without a ReLU, such as a projection shortcut, is converted with its block only.
    """
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, Fused) and type(module)._program is not None:
            inside |= _sequences_of(module, type(module)._program)
        if (
            id(module) in inside
            or isinstance(module, (Fused, *_OURS, torch.jit.ScriptModule))
            or type(module).forward is nn.Module.forward
        ):
            continue
        parts = list(_called_children(module))
        if is_sequence(module) and not any(isinstance(m, nn.ReLU) for m in parts):
            continue
        if any(isinstance(m, nn.Conv2d) for m in parts) and any(is_norm(m) for m in parts):
            yield name, module


def why_not_converted(module):
    """Why `convert` leaves `module` alone, or None."""
    try:
        program_for(module)
    except NotTraceable as e:
        return str(e)
    return None


def program_for(module):
    """The program of a module that is not converted. Raises NotTraceable with the reason."""
    origin = type(module)
    if "forward" in module.__dict__:
        raise NotTraceable("its forward was replaced on the instance")
    graph = isinstance(module, torch.fx.GraphModule)
    if not graph and (origin.__reduce_ex__ is not object.__reduce_ex__ or origin.__reduce__ is not object.__reduce__):
        raise NotTraceable("its class pickles itself in its own way")
    try:
        program = best_program(module, origin)
        class_for(origin, repr(program), program)
    except NotTraceable as e:
        raise NotTraceable(f"its forward {e}") from e
    except TypeError as e:  # a class that refuses subclasses, by its metaclass or __init_subclass__
        raise NotTraceable(f"its class cannot be extended ({e})") from e
    return program


def _sequences_of(module, program):
    """The ids of the sequences that `program` runs itself."""
    return {id(child(module, path)) for path, kind in program.parts if kind.startswith("sequence")}


def _called_children(module):
    """The children of `module`, and the children of those that are seen through."""
    if isinstance(module, torch.fx.GraphModule):
        yield from module.modules()
    for part in module.children():
        yield part
        if see_through(part):
            yield from _called_children(part)


def _check_module(model, function):
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model should be an nn.Module, got {type(model).__name__}")
