"""The graph of one module's own forward, with its children as leaves.

Nothing in the model changes: a copy of the module's dictionary is traced, and no child runs. A forward has no graph if its path
depends on the mode, on random numbers or on tensors of the module, if it runs a part of itself in another context, or if it
changes anything else than tensors.
"""

import operator
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


class _Proxy(fx.Proxy):
    """Records `a += b` as it is written, where fx records a + b: only after `a += b` may a fused op write into a."""


def _in_place(name):
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self):
        super().__init__()
        self.container = None
        self.entry = contexts.state(), torch._C._len_torch_function_stack()

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
        return _Proxy(node, self)

    def create_arg(self, a):
        if isinstance(a, dict):
            self.container = type(a)  # fx keeps no difference between dict and OrderedDict
        return super().create_arg(a)


class _OnlyProxies(TorchFunctionMode):
    """Raises NotTraceable at functions of torch that do not get the input: of random numbers, or of the module's state."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = []
        fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
        if not found:
            raise NotTraceable(f"calls {getattr(func, '__name__', func)} on something else than its input")
        return func(*args, **kwargs)


def _shell(module, origin, training):
    """A copy of `module` whose forward may set attributes without anybody noticing."""
    shell = object.__new__(origin)
    shell.__dict__.update(module.__dict__)
    shell.__dict__["training"] = training
    return shell


def _random_states():
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else repr(numpy.random.get_state())


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
    shell = _shell(module, origin, training)
    before, state, randoms = shell.__dict__.copy(), random.getstate(), _random_states()
    why = None
    try:
        with contexts.entered(flags, grad), nothing_printed(), _OnlyProxies():
            tracer = _Tracer()
            graph = tracer.trace(shell)
    except NotTraceable as e:
        why = str(e)
    except Exception as e:  # a user's forward may raise anything when it gets a proxy
        first = (str(e).splitlines() or [""])[0][:100]
        why = f"cannot be traced ({type(e).__name__}: {first})"
    if _random_states() != randoms:
        random.setstate(state)
        why = why or "draws random numbers"
    changed = outside.restore()
    shell.__dict__["training"] = training
    if (changed := difference(shell.__dict__, before) or changed) is not None:
        own = not changed.startswith(("global ", "a variable "))
        why = why or f"sets {'its attribute ' * own}{changed}"
    if why is not None:
        raise NotTraceable(why)
    return str(graph), graph, tracer.container
