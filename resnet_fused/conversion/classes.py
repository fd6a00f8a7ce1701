"""The class that a converted module gets: a subclass of its own with a fused forward, and nothing in the instance."""

import copy
import copyreg
import functools

import torch
from torch import fx, nn

from ..models.resnet import BasicBlock, Bottleneck, ResNet
from ..modules.eligible import check_not_scripted
from ..modules.torchs_own import asked_once
from .attributes import is_compared
from .code import GONE, Code
from .effects import NotTraceable
from .match import program_of
from .residual import residual_block
from .run import run, why_not_as_converted, why_not_run


class Fused:
    """What the class of a converted module has before the module's own class, `_origin`.

    `_program`: what runs, or None, and `_why` then says why. `_block`: the residual block that the program is, or None.
    `_own`: this class; others may derive from it. `_ours`: the class of this package whose forward runs in place of the
    program, or None. `_why_not_code()`: what of the code behind the program was replaced, or None. `_reads(name)`: whether
    that code may read such an attribute.
    """

    _origin = _program = _block = _ours = None
    __prepare_scriptable__ = check_not_scripted

    def forward_by_modules(self, x):
        return type(self)._origin.forward(self, x)

    def why_not_fused(self, x):
        """Why the module runs the forward of its own class on `x`, or None."""
        ours = type(self)._ours
        return why_not_run(self, x) if ours is None else why_not_as_converted(self) or ours.why_not_fused(self, x)

    def forward(self, x):
        if self.why_not_fused(x):
            return self.forward_by_modules(x)
        return run(self, x)

    # Children, functions and helper objects change what a forward calls. Plain attributes are compared at every call.
    def __setattr__(self, name, value):
        before = self.__dict__.get("_modules", {}).get(name)
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) or before is not None or (not is_compared(value) and type(self)._reads(name)):
            match_again(self)

    def __delattr__(self, name):
        is_child, before = name in self.__dict__.get("_modules", {}), self.__dict__.get(name)
        super().__delattr__(name)
        if is_child or (not is_compared(before) and type(self)._reads(name)):
            match_again(self)

    def add_module(self, name, module):
        super().add_module(name, module)
        match_again(self)

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


def match_again(module):
    """After a change of the module: the forward of its original class may compute something else now."""
    cls = _converted(type(module))
    try:
        program, why = best_program(module, cls._origin), None
    except NotTraceable as e:
        program, why = None, str(e)
    if not issubclass(cls, FusedGraph) or program != cls._program or why is not None:
        _put(module, class_for(cls._origin, repr(program), program, why))


def put_back(module):
    """Gives a converted module its own class again."""
    _put(module, _converted(type(module))._origin)


def _put(module, new):
    """Puts `new` in the place of the converted class of `module`. A class that somebody derived from that (FSDP2 and
    parametrizations do) is derived from `new` then."""
    cls = type(module)
    if cls is not (derived := _derived(cls, _converted(cls), new)):
        object.__setattr__(module, "__class__", derived)


def _converted(cls):
    """The class made here from which `cls` is derived, or which it is."""
    return next(c for c in cls.__mro__ if vars(c).get("_origin") is not None)


@functools.cache
def _derived(cls, old, new):
    if cls is old:
        return new
    if not issubclass(cls, old):
        return cls
    namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, tuple(_derived(base, old, new) for base in cls.__bases__), namespace)


class FusedGraph(Fused):
    """`Fused` for a torch.fx GraphModule, whose class belongs to one instance and gets a new forward when its graph changes."""

    def recompile(self):
        origin = type(self)._origin
        object.__setattr__(self, "__class__", origin)
        code = origin.recompile(self)
        object.__setattr__(self, "__class__", class_for(origin, "", None, "is being matched"))
        match_again(self)
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
    match_again(module)
    return module


def class_for(origin, program_text, program, why=None):
    """The subclass of `origin` that runs `program`, the same for equal programs of the same code. `program_text` tells 1,
    1.0 and True apart, which are equal."""
    if issubclass(origin, fx.GraphModule):
        return _make_class(origin, program, why, None, FusedGraph)
    code = Code(origin)
    variables = code.variables.values()
    key = origin, program_text, why, frozenset((id(owner), name, id(value)) for owner, _, name, value in variables)
    if key not in _classes:
        _classes[key] = _make_class(origin, program, why, code, Fused)  # it keeps what the ids belong to
    return _classes[key]


_classes = {}


def _make_class(origin, program, why, code, base):
    namespace = {
        "_origin": origin, "_program": program, "_block": residual_block(program), "_why": why,
        "_why_not_code": staticmethod(_comparison(() if code is None else tuple(code.variables.values()))),
        "_reads": staticmethod(_nothing if code is None else code.names),
        "__module__": origin.__module__, "__qualname__": origin.__qualname__, "__doc__": origin.__doc__,
    }  # fmt: skip
    if (ours := _ours(program)) is not None:
        namespace |= {name: getattr(ours, name) for name in _OF_OURS if hasattr(ours, name)}
        namespace |= {"_ours": ours, "forward": _network_forward if issubclass(ours, ResNet) else ours.forward}
    made = type(origin)(origin.__name__, (base, origin), namespace)
    made._own = made
    return made


def _nothing(name):
    """Which attributes the forward of a GraphModule reads besides tensors and children: its graph has their values."""
    return False


def _comparison(variables):
    """A function that says which of the functions and globals in `Code.variables` was replaced, or None."""

    @asked_once
    def why_not_code():
        for _, namespace, name, value in variables:
            if namespace.get(name, GONE) is not value:
                return f"{name} was replaced or changed after the conversion"
        return None

    return why_not_code


# What the forward of a class of this package reads from that class.
_OF_OURS = ("memory_efficient", "_fused_chain", "_fused_stem", "_fused_layer")


def _network_forward(self, x):
    """The forward of a converted network that computes what `ResNet` does."""
    cls = type(self)
    return cls._origin.forward(self, x) if why_not_as_converted(self) else cls._ours._forward_impl(self, x)


def _ours(program):
    """The class of this package whose forward computes exactly `program`, or None. That forward has the fastest kernels."""
    return None if program is None else _known().get(repr(program.steps))


@functools.cache
def _known():
    with torch.random.fork_rng(devices=[]):  # their initial values must not cost the caller random numbers
        shortcuts = None, _projection()
        examples = [block(4, 4, downsample=shortcut) for block in (BasicBlock, Bottleneck) for shortcut in shortcuts]
        examples.append(ResNet(BasicBlock, [0, 0, 0, 0]))
    return {repr(program_of(m, type(m)).steps): type(m) for m in examples}


def _projection():
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
