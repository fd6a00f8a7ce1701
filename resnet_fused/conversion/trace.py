"""The graph of one module's own forward, with its children as leaves.

Nothing in the model changes: a copy of the module's dictionary is traced, and no child runs. A forward has no graph if its path
depends on the mode, on random numbers or on tensors of the module, if it runs a part of itself in another context, or if it
changes anything else than tensors.
"""

import contextlib
import operator
import pickle
import random
import sys
import threading

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..modules.eligible import is_sequence
from . import contexts
from .effects import NotTraceable, Outside, difference, nothing_printed

_one_at_a_time = threading.RLock()  # torch.fx patches nn.Module while it traces


def see_through(module):
    """Whether `module` is a sequence with a convolution or a norm in it, or in a sequence in it: a projection shortcut, say.

    The children of such a sequence belong to the graph of the module that calls it.
    """
    return is_sequence(module) and any(isinstance(m, nn.Conv2d) or is_norm(m) or see_through(m) for m in module)


def is_norm(module):
    """Whether `module` looks like a norm over channels, which makes a module with convolutions worth a trace."""
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return True
    return {"weight", "bias", "running_mean", "running_var"} <= module._buffers.keys()  # frozen batch norms


class Proxy(fx.Proxy):
    """Records `a += b` as it is written, where fx records a + b: only after `a += b` may a fused op write into a."""


def _in_place(name):
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(Proxy, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__()
        self.container = None

    def trace(self, *args, **kwargs):
        self.entry = contexts.state(), torch._C._len_torch_function_stack()
        return super().trace(*args, **kwargs)

    def create_node(self, *args, **kwargs):
        if (name := contexts.changed(*self.entry)) is not None:
            raise NotTraceable(f"changes {name} for a part of itself")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m, module_qualified_name):
        return not see_through(m)

    def call_module(self, m, forward, args, kwargs):
        if see_through(m):
            return nn.Sequential.forward(m, *args, **kwargs)  # without its hooks: they are for tensors
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node):
        return Proxy(node, self)

    def create_arg(self, a):
        if isinstance(a, dict):
            self.container = type(a)  # fx keeps no difference between dict and OrderedDict
        return super().create_arg(a)


class OnlyProxies(TorchFunctionMode):
    """Raises NotTraceable at functions of torch that do not get the input: of random numbers, or of the module's state."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = []
        fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
        if not found:
            raise NotTraceable(f"calls {getattr(func, '__name__', func)} on something else than its input")
        return func(*args, **kwargs)


@contextlib.contextmanager
def shell_of(module, origin, outside, training):
    """Context manager: a copy of `module` for one forward of `origin`. `outside`: its Outside.

    What the forward changes besides tensors is put back, and NotTraceable raised.
    """
    shell = object.__new__(origin)
    shell.__dict__.update(module.__dict__)
    shell.__dict__["training"] = training
    before = shell.__dict__.copy()
    try:
        yield shell
    finally:
        changed = outside.restore()
    before["training"] = shell.__dict__["training"]
    if (name := difference(shell.__dict__, before)) is not None:
        changed = name
    if changed is not None:
        own = not changed.startswith(("global ", "a variable "))
        raise NotTraceable(f"sets {'its attribute ' * own}{changed}")


def random_states():
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else pickle.dumps(numpy.random.get_state(legacy=False))


def graph_of(module, origin, code):
    """(graph, type of a returned dict or None) of `origin.forward` for `module`, an instance of `origin`; `code`: its Code.

    Raises NotTraceable. Call_module nodes have the child's path as target; nodes inside sequences that are seen
    through are part of the graph, with paths such as "downsample.0".
    """
    with _one_at_a_time:
        outside = Outside(module, code)
        # Each of training, gradients and the flags has both values.
        modes = ((True, True, False), (True, False, True), (False, True, True), (False, False, False))
        results = [_trace(module, origin, outside, *mode) for mode in modes]
    if len({text for text, _, _ in results}) > 1:
        raise NotTraceable("depends on the mode (training, gradients, autocast, flags of torch)")
    return results[0][1:]


def _trace(module, origin, outside, training, grad, flags):
    """(text of the graph, graph, type of a returned dict or None) in one mode."""
    tracer, state, before = Tracer(), random.getstate(), random_states()
    try:
        copied = shell_of(module, origin, outside, training)
        with contexts.entered(flags, grad), nothing_printed(), copied as shell, OnlyProxies():
            graph = tracer.trace(shell)
    except NotTraceable:
        raise
    except Exception as e:  # a user's forward may raise anything when it gets a proxy
        first = (str(e).splitlines() or [""])[0][:100]
        raise NotTraceable(f"cannot be traced ({type(e).__name__}: {first})") from e
    finally:
        if drew := random_states() != before:
            random.setstate(state)
    if drew:
        raise NotTraceable("draws random numbers")
    return str(graph), graph, tracer.container
