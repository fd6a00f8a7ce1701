"""The calls of a network's graph, with nothing written in place: whoever reads a value after a write reads its result."""

import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..conversion.effects import NotTraceable
from ..conversion.trace import Proxy
from ..modules.eligible import watched
from ..modules.norms import is_frozen, with_activation
from .function import Constant, Function, Value, items_of, template_of

VIEWS = {"view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "expand_as", "narrow",
         "select", "chunk", "split", "unbind", "getitem", "contiguous", "movedim", "swapaxes"}  # fmt: skip
IN_PLACE = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, torch.relu_: torch.relu, F.relu_: F.relu,
}  # fmt: skip


@dataclass(eq=False, repr=False)
class Op:
    """A call of a module, a function or a method (a name); of a constant `args` is empty. Nothing is written in place."""

    name: str
    target: object
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    users: list = field(default_factory=list)
    position: int = 0
    shape: tuple | None = None

    def __repr__(self):
        return self.name

    @property
    def kind(self):
        """What tables have for the call: the class of a module, the function or the name of a method."""
        return type(self.target) if isinstance(self.target, nn.Module) else self.target

    @property
    def inputs(self):
        found = {}
        fx.node.map_aggregate((self.args, self.kwargs), lambda a: found.setdefault(a) if isinstance(a, Op) else None)
        return list(found)

    @property
    def only(self):
        """The one argument of the call, or None."""
        return self.args[0] if len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Op) else None

    @property
    def user(self):
        """The one call that uses the result, or None."""
        return self.users[0] if len(self.users) == 1 else None


class Calls:
    """`Calls(graph, modules, model).made(returned)`. A cell is what one tensor of the model holds over time."""

    def __init__(self, graph, model, modules):
        self.graph, self.model, self.modules = graph, model, modules
        self.cells, self.latest, self.views = {}, {}, {}  # {node: cell}, {cell: op}, {cell: group of cells}
        self.returned = []  # nodes

    def made(self, returned):
        """(the calls that the result needs, the result with calls in it). `returned`: the result with proxies in it."""
        ops = []
        self.returned = [proxy.node for proxy in items_of(returned, Proxy)]
        for node in self.graph.nodes:
            args, kwargs = self.resolved(node.args), self.resolved(node.kwargs)
            if node.op == "output":
                result = template_of(returned, lambda a: self.latest[self.cells[a.node]] if type(a) is Proxy else None)
                return _needed(ops, result), result
            target, written = self.target_of(node), None
            if node.op == "placeholder":
                op = Op("x", None)
            elif _passes(target, args, kwargs):
                self.cells[node] = self.cells[node.args[0]]
                continue
            elif node.op == "get_attr":
                op = Op(node.target, Constant(target))
            else:
                target, args, kwargs, written = _out_of_place(target, args, kwargs)
                op = Op(self.name_of(node), target, args, kwargs)
            self.note(node, op, written)
            ops.append(op)
        raise AssertionError("a graph has an output")

    def resolved(self, arguments):
        """`arguments` with the present value of each node."""
        return fx.node.map_aggregate(arguments, lambda a: self.latest[self.cells[a]] if isinstance(a, fx.Node) else a)

    def target_of(self, node):
        if node.op == "call_module":
            return self.modules[node.target]
        if node.op == "get_attr":
            owner, _, name = node.target.removeprefix("model.").rpartition(".")
            return getattr(self.model.get_submodule(owner), name)
        return node.target

    def name_of(self, node):
        return (
            node.target.removeprefix("model.").partition("@")[0]
            if node.op == "call_module"
            else node.name.removeprefix("model_")
        )

    def note(self, node, op, written):
        """Gives `node` its cell. A cell is what one tensor of the model holds over time; a view shares memory with cells."""
        if written:
            cell = self.cells[node.args[0]]
            if any(self.is_read_after(other, node) for other in self.views.get(cell, ()) if other != cell):
                raise NotTraceable(f"writes in place ({node.name}) into memory that another of its values shares")
        else:
            cell = len(self.latest)
            if _may_share(op):
                group = {cell}
                for source in node.all_input_nodes:
                    group |= self.views.get(self.cells[source], {self.cells[source]})
                for member in group:
                    self.views[member] = group
        self.cells[node], self.latest[cell] = cell, op

    def is_read_after(self, cell, node):
        after = list(self.graph.nodes)[list(self.graph.nodes).index(node) + 1 :]
        read = [source for later in after for source in later.all_input_nodes] + self.returned
        return any(self.cells.get(source) == cell for source in read)


def _passes(target, args, kwargs):
    """Whether a call returns its argument: identities, and dropout in evaluation."""
    if isinstance(target, nn.Module):
        known = isinstance(target, (nn.Identity, nn.modules.dropout._DropoutNd)) and not watched(target)
        return known and type(target).__module__.startswith("torch.") and len(args) == 1
    if target in (F.dropout, F.dropout2d) or getattr(target, "__name__", "") == "stochastic_depth":
        training = kwargs.get("training", args[-1] if len(args) > 2 else None)
        return training is False
    return target in ("contiguous", "detach") and len(args) == 1 and not kwargs


def _out_of_place(target, args, kwargs):
    """(target, args, kwargs, whether the call wrote into its first argument), for a call that writes nowhere."""
    if isinstance(target, nn.Module):  # an engine copies modules, and its copies write nowhere
        return target, args, kwargs, getattr(target, "inplace", False) is True
    if isinstance(target, str):
        if target.endswith("_") and not target.endswith("__"):
            if not callable(getattr(torch.Tensor, target[:-1], None)):
                raise NotTraceable(f"writes in place by {target}")
            return target[:-1], args, kwargs, True
        size = args[1:] and not isinstance(args[1], torch.dtype) and not kwargs
        return ("reshape" if target == "view" and size else target), args, kwargs, False
    if "out" in kwargs:
        raise NotTraceable(f"writes into an argument of {getattr(target, '__name__', target)}")
    if kwargs.get("inplace"):
        return target, args, {k: v for k, v in kwargs.items() if k != "inplace"}, True
    if target in IN_PLACE:
        return IN_PLACE[target], args, kwargs, True
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.startswith("_"):
        raise NotTraceable(f"writes in place by {name}")
    inplace = (F.relu6, F.hardswish, F.silu, F.hardsigmoid, F.relu, F.elu, F.selu, F.mish, F.leaky_relu, F.hardtanh)
    if target in inplace and args and args[-1] is True:
        return target, args[:-1], kwargs, True
    return target, args, kwargs, False


def _may_share(op):
    """Whether the result of a call may share memory with its arguments."""
    if isinstance(op.target, nn.Module):
        known = type(op.target).__module__.startswith("torch.nn.") or with_activation(op.target) or is_frozen(op.target)
        return isinstance(op.target, nn.Flatten) or not known
    name = op.target if isinstance(op.target, str) else getattr(op.target, "__name__", "")
    known = isinstance(op.target, str) or op.target is getattr or getattr(op.target, "__module__", "") in (
        "torch", "torch.nn.functional", "_operator", "torch._C._nn", None)  # fmt: skip
    of_data = op.target is getattr and op.args[1] in ("data", "T", "mT", "H", "mH", "real")
    return name in VIEWS or of_data or not known


def _needed(ops, result):
    """The calls that `result` needs, in order, each with its users and its position."""
    returned = items_of(result, Op)
    needed, waiting = set(), list(returned)
    while waiting:
        op = waiting.pop()
        if op not in needed:
            needed.add(op)
            waiting += op.inputs
    kept = [op for op in ops if op in needed or op.target is None]
    for i, op in enumerate(kept):
        op.position = i
        for source in op.inputs:
            source.users.append(op)
    for op in returned:
        op.users.append(None)  # nothing may take its value in
    return kept


@torch.no_grad()
def observe(ops, example):
    """Notes the shape of every tensor, for two images. Raises NotTraceable where a module writes into what it reads."""
    values, modes = {}, {}
    modules = {m for op in ops if isinstance(op.target, nn.Module) for m in op.target.modules()}
    like = next((p for m in modules for p in m.parameters() if p.is_floating_point()), example)
    try:
        for m in modules:
            modes[m], m.training = m.training, False
        for op in ops:
            if op.target is None:
                values[op] = torch.cat([example[:1]] * 2).to(like.dtype)
            else:
                read = {v: v._version for v in map(values.get, op.inputs) if torch.is_tensor(v)}
                module = Function(op.target, *templates(op))
                values[op] = module(*map(values.get, op.inputs))
                in_place = getattr(op.target, "inplace", False) is True
                if not in_place and any(v._version != before for v, before in read.items()):
                    raise NotTraceable(f"calls {op.name}, which writes into the tensor it gets")
            if torch.is_tensor(values[op]):
                op.shape = tuple(values[op].shape)
    finally:
        for m, mode in modes.items():
            m.training = mode


def templates(op):
    """The arguments of a call as templates: its inputs are Values by their order."""
    numbers = {source: Value(i) for i, source in enumerate(op.inputs)}
    return template_of((op.args, op.kwargs), lambda a: numbers[a] if isinstance(a, Op) else None)
