"""The graph of a whole network in evaluation, without gradients, through every module whose own forward can be traced.

What cannot be traced is one call in the graph, as the modules of torch are. fx patches nn.Module meanwhile, so no other
thread may run torch modules.
"""

import random

import torch
from torch import fx, nn

from ..modules.eligible import is_sequence, watched
from ..modules.norms import is_frozen, with_activation
from ..modules.zero_pad import ZeroPadShortcut
from .classes import Fused
from .code import Code
from .effects import NotTraceable, Outside, nothing_printed
from .trace import OnlyProxies, Tracer, random_states, shell_of


class _Root(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.returned = model, None

    def forward(self, x):
        self.returned = self.model(x)
        return None  # fx would not keep the types of containers


class _Through(Tracer):
    def __init__(self):
        super().__init__()
        self.opaque = {}  # {path of a module that could not be traced: why}
        self.modules = {}  # {path: module} of the calls in the graph

    def path_of_module(self, mod):
        """Its path; a name of its own for a module that a forward makes, such as nn.Flatten()(x)."""
        try:
            return super().path_of_module(mod)
        except NameError:
            return f"model.{type(mod).__name__}@{id(mod)}"

    def call_module(self, m, forward, args, kwargs):
        path = self.path_of_module(m)
        self.modules[path] = m
        if with_activation(m) and type(m.drop) is nn.Identity and not watched(m):
            return m.act(self._leaf(path, args, kwargs))  # the call stands for the norm alone
        if is_leaf(m):
            return self._leaf(path, args, kwargs)
        before = list(self.graph.nodes)
        try:
            return _forward(m, args, kwargs)
        except Exception as e:  # a forward may raise anything when it gets a proxy
            for node in reversed(list(self.graph.nodes)[len(before) :]):
                self.graph.erase_node(node)
            self.opaque[path] = str(e) if isinstance(e, NotTraceable) else f"cannot be traced ({_first_line(e)})"
            return self._leaf(path, args, kwargs)

    def _leaf(self, path, args, kwargs):
        return self.create_proxy("call_module", path, args, kwargs)


def is_leaf(m):
    """Whether a call of `m` stays one call: modules of torch, norms, and whatever somebody watches."""
    if watched(m) or isinstance(m, torch.jit.ScriptModule):
        return True
    if is_sequence(m) or isinstance(m, fx.GraphModule):
        return False
    return type(m).__module__.startswith("torch.") or type(m) is ZeroPadShortcut or is_frozen(m)


def _forward(m, args, kwargs):
    """What the forward of `m` returns. It runs on a copy of the module's dictionary, so that nothing in `m` changes."""
    origin = type(m)._origin if isinstance(m, Fused) else type(m)
    with shell_of(m, origin, Outside(m, Code(origin)), training=False) as shell:
        return origin.forward(shell, *args, **kwargs)


def _first_line(e):
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:100]}"


def flat_graph(model):
    """(graph, {path: module}, what the model returns with proxies in it, {path: why it could not be traced}). Paths and
    attributes in the graph begin with "model".

    Raises NotTraceable where not even the forward of `model` itself can be traced.
    """
    tracer, root, state, before = _Through(), _Root(model), random.getstate(), random_states()
    with torch.no_grad(), nothing_printed(), OnlyProxies():
        graph = tracer.trace(root)
    if random_states() != before:
        random.setstate(state)
        raise NotTraceable("draws random numbers")
    if (why := tracer.opaque.get("model")) is not None:
        raise NotTraceable(why)
    return graph, tracer.modules, root.returned, tracer.opaque
