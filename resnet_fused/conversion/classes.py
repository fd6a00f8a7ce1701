"""The class that a converted module gets: a subclass of its own with a fused forward, and nothing in the instance."""

import copy
import copyreg
import functools

from torch import fx, nn

from ..models.resnet import BasicBlock, Bottleneck, ResNet
from ..modules.eligible import check_not_scripted
from .match import program_of
from .residual import residual_block
from .run import run, why_not_run
from .trace import NotTraceable


class Fused:
    """What the class of a converted module has before the module's own class, `_origin`.

    `_program`: what runs, or None, and `_why` then says why. `_block`: the residual block that the program is, or None.
    """

    _origin = _program = _block = None
    __prepare_scriptable__ = check_not_scripted

    def forward_by_modules(self, x):
        return type(self)._origin.forward(self, x)

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
            _match_again(self)

    def __delattr__(self, name):
        super().__delattr__(name)
        if name != "why_not_fused":
            _match_again(self)

    def add_module(self, name, module):
        super().add_module(name, module)
        _match_again(self)

    def __reduce_ex__(self, protocol):
        make, (_, *arguments), *rest = super().__reduce_ex__(max(protocol, 2))
        if make is not copyreg.__newobj__:
            raise TypeError(f"a converted {type(self).__name__} cannot be pickled; unconvert it first")
        return _make_again, (type(self)._origin, type(self)._program, *arguments), *rest


def _make_again(origin, program, *arguments):
    cls = class_for(origin, repr(program), program)
    return cls.__new__(cls, *arguments)


def best_program(module, origin):
    """The program that fuses most of `origin.forward` for `module`. Raises NotTraceable.

    The forwards of this package synchronise nn.SyncBatchNorm over processes. A program that runs step by step does not, so
    it calls such a norm as it is.
    """
    if any(type(m) is nn.SyncBatchNorm for m in module.modules()):
        program = program_of(module, origin, sync=True)
        if _ours(program) is not None:
            return program
    return program_of(module, origin)


def _match_again(module):
    """After a change of the module: the forward of its original class may compute something else now."""
    cls = type(module)
    try:
        program, why = best_program(module, cls._origin), None
    except NotTraceable as e:
        program, why = None, str(e)
    if program != cls._program or why is not None:
        object.__setattr__(module, "__class__", class_for(cls._origin, repr(program), program, why))


class FusedGraph(Fused):
    """`Fused` for a torch.fx GraphModule, whose class belongs to one instance and gets a new forward when its graph changes."""

    def recompile(self):
        origin = type(self)._origin
        object.__setattr__(self, "__class__", origin)
        code = origin.recompile(self)
        object.__setattr__(self, "__class__", class_for(origin, "", None, "is being matched"))
        _match_again(self)
        return code

    def _plain(self):
        """The same module, unconverted: GraphModule copies and pickles itself by its class."""
        plain = object.__new__(type(self)._origin)
        plain.__dict__ = self.__dict__
        return plain

    def __deepcopy__(self, memo):
        copied = memo[id(self)] = convert_graph(copy.deepcopy(self._plain(), memo))
        return copied

    def __copy__(self):
        return convert_graph(copy.copy(self._plain()))

    def __reduce_ex__(self, protocol):
        return convert_graph, (self._plain(),)


def convert_graph(module):
    """Converts one GraphModule in place, also where nothing of it can be fused now, and returns it."""
    object.__setattr__(module, "__class__", class_for(type(module), "", None, "is being matched"))
    _match_again(module)
    return module


def class_for(origin, program_text, program, why=None):
    """The subclass of `origin` that runs `program`, the same for equal programs. `program_text` tells 1, 1.0 and True apart,
    which are equal."""
    if issubclass(origin, fx.GraphModule):
        return _make_class(origin, program, why, FusedGraph)
    return _shared_class(origin, program_text, program, why)


@functools.cache
def _shared_class(origin, program_text, program, why):
    return _make_class(origin, program, why, Fused)


def _make_class(origin, program, why, base):
    namespace = {
        "_origin": origin, "_program": program, "_block": residual_block(program), "_why": why,
        "__module__": origin.__module__, "__qualname__": origin.__qualname__, "__doc__": origin.__doc__,
    }  # fmt: skip
    if (ours := _ours(program)) is not None:
        namespace |= {name: getattr(ours, name) for name in _OF_OURS if hasattr(ours, name)}
    return type(origin)(origin.__name__, (base, origin), namespace)


# What the forward of a class of this package reads from that class.
_OF_OURS = ("forward", "why_not_fused", "memory_efficient", "_fused_chain", "_fused_stem", "_fused_layer")


def _ours(program):
    """The class of this package whose forward computes exactly `program`, or None. That forward has the fastest kernels."""
    return None if program is None else _known().get(repr(program.steps))


@functools.cache
def _known():
    examples = [
        block(4, 4, downsample=shortcut) for block in (BasicBlock, Bottleneck) for shortcut in (None, _projection())
    ]
    examples.append(ResNet(BasicBlock, [0, 0, 0, 0]))
    return {repr(program_of(m, type(m)).steps): type(m) for m in examples}


def _projection():
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
