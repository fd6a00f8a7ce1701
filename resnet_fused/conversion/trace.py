"""The graph of one module's own forward, with its children as leaves.

Nothing in the model changes: a copy of the module's dictionaries is traced, and no child runs. A forward whose path depends on
the mode, on random numbers or on tensors of the module has no graph.
"""

import collections
import itertools
import operator
import random
import sys

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..modules.eligible import is_sequence


class NotTraceable(Exception):
    """Why a module's forward has no graph; the message continues "its forward ..."."""


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


_MUTABLE = (dict, list, set, collections.OrderedDict, collections.deque)


def shell_of(module, origin):
    """A copy of `module` whose forward may set attributes without anybody noticing."""
    shell = origin.__new__(origin)
    shell.__dict__.update((k, v.copy() if isinstance(v, _MUTABLE) else v) for k, v in module.__dict__.items())
    return shell


def changed(shell, module):
    """The name of an attribute that a trace of `shell` has set or changed, or None."""
    for name in shell.__dict__.keys() | module.__dict__.keys():
        ours, own = (m.__dict__.get(name, changed) for m in (shell, module))
        if isinstance(own, _MUTABLE) and type(ours) is type(own):
            same = len(ours) == len(own) and all(a is b for a, b in zip(ours, own, strict=True))
            same = same and (not isinstance(own, dict) or all(ours[k] is own[k] for k in own))
        else:
            same = ours is own
        if not same and name != "training":
            return name
    return None


def random_states():
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else repr(numpy.random.get_state())


def graph_of(module, origin):
    """(graph, type of a returned dict or None) of `origin.forward` for `module`, an instance of `origin`.

    Raises NotTraceable. Call_module nodes have the child's path as target; nodes inside sequences that are seen
    through are part of the graph, with paths such as "downsample.0".
    """
    results = []
    for training, grad in itertools.product((True, False), repeat=2):
        shell, tracer = shell_of(module, origin), Tracer()
        shell.__dict__["training"] = training
        state, before = random.getstate(), random_states()
        try:
            with torch.set_grad_enabled(grad), OnlyProxies():
                graph = tracer.trace(shell)
        except NotTraceable:
            raise
        except Exception as e:  # a user's forward may raise anything when it gets a proxy
            first = (str(e).splitlines() or [""])[0][:100]
            raise NotTraceable(f"cannot be traced ({type(e).__name__}: {first})") from e
        if random_states() != before:
            random.setstate(state)
            raise NotTraceable("draws random numbers")
        if (name := changed(shell, module)) is not None:
            raise NotTraceable(f"sets its attribute {name}")
        results.append((str(graph), graph, tracer.container))
    if len({text for text, _, _ in results}) > 1:
        raise NotTraceable("depends on the mode (training, gradients)")
    return results[0][1:]
