"""The class that a converted module gets: a subclass of its own with a fused forward, and nothing in the instance."""

import copyreg
import functools

from torch import nn

from .blocks import refuse_scripting
from .matching import plan_of
from .resnet import BasicBlock, Bottleneck, ResNet
from .run_plan import run, why_not_run
from .tracing import NotTraceable


class Fused:
    """What a converted module has before its own class. `_origin` and `_plan` are attributes of the class, not of it."""

    _origin = _plan = None
    __prepare_scriptable__ = refuse_scripting

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
    cls = class_for(origin, repr(plan), plan)
    return cls.__new__(cls, *arguments)


def _plan_again(module):
    """After a change from outside: `forward` of the original class may do something else now."""
    cls = type(module)
    try:
        plan, why = plan_of(module, cls._origin), None
    except NotTraceable as e:
        plan, why = None, str(e)
    if plan != cls._plan or why is not None:
        object.__setattr__(module, "__class__", class_for(cls._origin, repr(plan), plan, why))


@functools.cache
def class_for(origin, plan_text, plan, why=None):
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
