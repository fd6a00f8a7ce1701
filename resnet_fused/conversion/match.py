"""From the graph of a module's forward to a program: finds the chains of operations that may be fused unnoticed."""

import operator
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..modules.eligible import why_not_convolution
from ..modules.norms import relu_inside, why_not_norm
from .attributes import read_by
from .code import Code
from .effects import NotTraceable
from .program import METHODS, NAMES, SEQUENCES, AddRelu, Attribute, Call, Chain, Function, Program, Ref
from .trace import graph_of, see_through


def program_of(module, origin, sync=False):
    """The program of `origin.forward` for `module`. Raises NotTraceable, also where nothing would be fused.

    `sync`: nn.SyncBatchNorm counts as a batch norm, for forwards that can synchronise.
    """
    if isinstance(module, fx.GraphModule):
        if type(module.graph._codegen) is not fx.graph.CodeGen:
            raise NotTraceable("has arguments or results in a form of its own")
        return _Matcher(module, module.graph, dict, sync).program()
    code = Code(origin)
    program = _Matcher(module, *graph_of(module, origin, code), sync).program()
    attributes, holders = read_by(module, code)
    return program._replace(attributes=attributes, holders=holders)


class _Matcher:
    def __init__(self, module, graph, container, sync):
        self.module, self.graph, self.container, self.sync = module, graph, container, sync
        self.nodes = list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.children = {n: module.get_submodule(n.target) for n in self.nodes if n.op == "call_module"}
        self.ends = {}  # last node of a chain: the function that makes the step of the chain
        self.inside = set()  # nodes of a chain but its last
        self.parts, self.unfused, self.refs, self.steps = {}, {}, {}, []

    def program(self):
        inputs = [n for n in self.nodes if n.op == "placeholder"]
        if len(inputs) != 1 or inputs[0].args or str(inputs[0].target).startswith("*"):
            raise NotTraceable("takes more than one argument")
        self.refs[inputs[0]] = Ref(0)
        for node in self.nodes:
            if self.is_norm(node):
                self.match_chain(node)
        for node in self.nodes:
            if self.is_add(node) and node not in self.inside and node not in self.ends:
                self.match_add(node)
        if not any(self.is_relu(node) or relu_inside(self.children[node]) for node in self.ends):
            why = "; ".join(f"{path} {reason}" for path, reason in self.unfused.items())
            raise NotTraceable("has no batch norm with a ReLU after it that could be fused" + (why and f" ({why})"))
        for node in self.nodes[1:]:
            self.emit(node)
        self.note_sequences(self.module, "")
        norms = [id(self.module.get_submodule(step.norm)) for step in self.steps if type(step) is Chain]
        if len(set(norms)) < len(norms):
            raise NotTraceable("uses a batch norm twice")
        absent = tuple(name for name, child in self.module._modules.items() if child is None)
        return Program(tuple(self.steps), self.output, tuple(self.parts.items()), absent, tuple(self.unfused.items()))

    def note_sequences(self, module, prefix):
        """Notes the sequences whose children belong to the graph."""
        for name, child in module.named_children():
            if see_through(child):
                self.parts[prefix + name] = f"sequence of {len(child)}"
                self.note_sequences(child, f"{prefix}{name}.")

    def why_not_norm(self, child):
        return None if self.sync and type(child) is nn.SyncBatchNorm else why_not_norm(child, relu=True)

    def is_norm(self, node):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return False
        child = self.children[node]
        why = self.why_not_norm(child)
        if why is not None and isinstance(child, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
            self.unfused[node.target] = why
        return why is None

    def is_relu(self, node):
        if node.op == "call_module":
            return type(self.children[node]) is nn.ReLU and len(node.args) == 1
        named = node.target in (F.relu, torch.relu) or (node.op == "call_method" and node.target in ("relu", "relu_"))
        return named and not ({"input"} & node.kwargs.keys())

    def is_add(self, node):
        function = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
        method = node.op == "call_method" and node.target in ("add", "add_")
        two = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs
        return (function or method) and two and node.args[0] is not node.args[1]

    def is_fresh(self, node):
        """Whether the result of `node` is new memory, which only the one user of `node` can see."""
        if len(node.users) != 1 or node.op == "placeholder":
            return False
        if node.op != "call_module":
            return False
        return self.is_pure(node) or all(self.is_fresh(n) for n in node.all_input_nodes)

    def only_user(self, node):
        """(the one node that uses `node`, or None; the nn.Identity modules between the two)."""
        passed = []
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node.op != "call_module" or type(self.children[node]) is not nn.Identity:
                return node, passed
            passed.append(node)
        return None, passed

    def match_chain(self, norm):
        conv = norm.args[0]
        if conv.op == "call_module" and isinstance(self.children[conv], nn.Conv2d):
            why = why_not_convolution(self.children[conv]) or ("is used twice" if len(conv.users) > 1 else None)
            if why is not None:
                self.unfused[conv.target] = why
                conv = None
        else:
            conv = None
        own = [n for n in (conv, norm) if n is not None]
        source = own[0].args[0]
        if not isinstance(source, fx.Node):
            return
        nodes, residual, relu, in_place = self.with_sum_and_relu(norm, own)
        if not self.may_wait(
            nodes, source
        ):  # as in relu(proj(x) + f(x)), where the convolution of proj stands before f
            nodes, residual, relu, in_place = own, None, relu_inside(self.children[norm]), False
        if (conv is None and not relu) or not self.may_wait(nodes, source):
            return
        self.inside.update(nodes[:-1])
        self.ends[nodes[-1]] = lambda: Chain(
            None if conv is None else conv.target, norm.target, self.refs[source],
            None if residual is None else self.refs[residual], relu, in_place,
        )  # fmt: skip
        self.bypass(nodes)

    def with_sum_and_relu(self, norm, own):
        """(`own` and the nodes after it that belong to its chain, the other summand or None, whether there is a ReLU, whether
        the sum was written in place)."""
        if relu_inside(self.children[norm]):
            return own, None, True, False
        user, passed = self.only_user(norm)
        if user is not None and self.is_relu(user):
            return [*own, *passed, user], None, True, False
        if user is not None and self.is_add(user) and self.may_add(user, (*own, *passed)):
            relu, more = self.only_user(user)
            if relu is not None and self.is_relu(relu):
                last = passed[-1] if passed else norm
                residual = next(a for a in user.args if a is not last)
                return [*own, *passed, user, *more, relu], residual, True, _in_place(user)
        return own, None, False, False

    def may_add(self, add, nodes):
        """Whether a chain of `nodes` may take in the sum `add`: not where the chain of the other summand has it, and not where
        `shortcut += out` writes into the shortcut."""
        return add not in self.inside and (not _in_place(add) or add.args[0] in nodes)

    def may_wait(self, nodes, source):
        """Whether the first of `nodes` can run where the last one stands."""
        first, last = self.position[nodes[0]], self.position[nodes[-1]]
        between = [n for n in self.nodes[first:last] if n not in nodes]
        if not between or self.is_fresh(source) or source in self.ends:
            return True
        return all(n in self.inside or n in self.ends or (n.op == "call_module" and self.is_pure(n)) for n in between)

    def is_pure(self, node):
        """Whether `node` returns fresh memory and modifies nothing."""
        child = self.children[node]
        return isinstance(child, (nn.Conv2d, nn.AvgPool2d)) or self.why_not_norm(child) is None

    def match_add(self, add):
        relu, passed = self.only_user(add)
        if relu is None or not self.is_relu(relu):
            return
        left, right = add.args
        if _in_place(add) and not (self.is_fresh(left) or (left in self.ends and len(left.users) == 1)):
            return
        nodes, in_place = [add, *passed, relu], _in_place(add)
        self.inside.update(nodes[:-1])
        self.ends[relu] = lambda: AddRelu(self.refs[left], self.refs[right], in_place)
        self.bypass(nodes)

    def bypass(self, nodes):
        """Notes the children that the chain of `nodes` does not call."""
        for node in nodes:
            if node.op == "call_module":
                child = self.children[node]
                kinds = ((nn.Conv2d, "conv"), (nn.ReLU, "relu"), (nn.Identity, "identity"))
                norm = "bn with relu" if relu_inside(child) else "bn"
                self.parts[node.target] = next((kind for cls, kind in kinds if isinstance(child, cls)), norm)

    def emit(self, node):
        """Appends the step of `node`, unless a chain computes it."""
        if node in self.inside:
            return
        if node.op == "output":
            self.output = self.freeze(node.args[0])
            if isinstance(node.args[0], dict) and self.container is not dict:
                if self.container is not OrderedDict:
                    raise NotTraceable(f"returns a {self.container.__name__}")
                self.output = "ordered", self.output[1]
            return
        if node in self.ends:
            step = self.ends[node]()
        elif node.op == "call_module":
            step = Call(node.target, self.freeze(tuple(node.args)), self.freeze(dict(node.kwargs)))
        elif node.op == "get_attr":
            step = Attribute(node.target)
        elif node.op == "call_function" and node.target in NAMES:
            step = Function(NAMES[node.target], self.freeze(tuple(node.args)), self.freeze(dict(node.kwargs)))
        elif node.op == "call_method" and node.target in METHODS:
            step = Function(f".{node.target}", self.freeze(tuple(node.args)), self.freeze(dict(node.kwargs)))
        else:
            raise NotTraceable(f"does something that is not known here ({node.op} {node.target})")
        self.steps.append(step)
        self.refs[node] = Ref(len(self.steps))

    def freeze(self, argument):
        """The template of an argument of a step: Refs, constants, and (kind, items) of what holds them; see `program.fill`."""
        if isinstance(argument, fx.Node):
            return self.refs[argument]
        if isinstance(argument, dict):
            return "dict", tuple((k, self.freeze(v)) for k, v in argument.items())
        if isinstance(argument, slice):
            return "slice", tuple(self.freeze(v) for v in (argument.start, argument.stop, argument.step))
        for kind, cls in SEQUENCES.items():
            if isinstance(argument, cls):
                return kind, tuple(self.freeze(v) for v in argument)
        if argument is None or isinstance(argument, (bool, int, float, str)):
            return argument
        raise NotTraceable(f"uses a constant of type {type(argument).__name__}")


def _in_place(add):
    return add.target is operator.iadd or add.target == "add_"
