"""The steps of any network, from the graph of its forward: see network.py for what a step is."""

import copy
from dataclasses import dataclass, replace

from torch import nn

from ..conversion.effects import NotTraceable
from ..conversion.whole import flat_graph
from ..modules.eligible import watched
from ..modules.norms import with_activation
from ..modules.torchs_own import why_not_torchs_own
from .function import Function, Value, items_of, template_of
from .functional import Calls, Op, observe, templates
from .gate import Gate
from .network import Apply, ConvBn, Head, Network
from .patterns import (
    ADDS,
    POINTWISE,
    RELUS,
    gated,
    is_convolution,
    is_norm,
    is_pool,
    is_unwatched,
    norm_of,
    other_addend,
    pool_before,
    relu_after,
)


def read(model, example, unary=()):
    """(the steps of `model`, the template of its result, {name of a module that runs as it is: why}).

    `unary`: the names of function.UNARY that may follow a convolution in its step. Raises TypeError, in one line, where
    nothing can be frozen.
    """
    if (why := why_not_torchs_own()) is not None:
        raise TypeError(f"freeze: {why}; use the live model")
    if isinstance(model, Network):
        return model.steps(), model.result, {}
    if watched(model):
        raise TypeError(
            f"freeze: {type(model).__name__} carries a hook, which an engine would not call; remove it first"
        )
    try:
        graph, modules, returned, opaque = flat_graph(model)
        ops, result = Calls(graph, model, modules).made(returned)
        if not items_of(result, Op):
            raise NotTraceable(f"returns a {type(result).__name__}, in which a trace finds no tensor")
        if not any(isinstance(op.target, nn.Conv2d) for op in ops):
            why = "; ".join(f"{name.removeprefix('model.')} {reason}" for name, reason in opaque.items())
            raise NotTraceable(f"calls no convolution{f' ({why})' if why else ''}")
        observe(ops, example)
        steps, numbers = _Matcher(ops, unary).steps()
    except NotTraceable as e:
        raise TypeError(f"freeze: the forward of {type(model).__name__} {e}; use the live model") from e
    result = template_of(result, lambda a: Value(numbers[a]) if isinstance(a, Op) else None)
    return steps, result, {name.removeprefix("model."): why for name, why in opaque.items()}


def _plain(norm):
    """`norm`, or an nn.BatchNorm2d with its parameters and buffers, which computes the norm alone: without activation and
    without other processes."""
    if type(norm) is nn.BatchNorm2d:
        return norm
    plain = nn.BatchNorm2d(len(norm.running_var), norm.eps, device="meta").eval()
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    return plain


@dataclass(eq=False)
class _Chain:
    """The calls that one convolution step stands for."""

    conv: Op
    norm: Op | None
    last: Op
    residual: Op | None = None
    relu: bool = False
    unary: str | None = None
    pool: bool = False


class _Matcher:
    def __init__(self, ops, unary):
        self.ops, self.unary = ops, unary
        self.inside = set()  # calls that the step of a later call has taken in
        self.last = set()  # the last calls of chains

    def steps(self):
        """(the steps, {call: the number of its value})."""
        chains = [_Chain(op, norm, norm or op) for op in self.ops if is_convolution(op) for norm in [norm_of(op)]]
        for chain in chains:
            self.inside |= set() if chain.norm is None else {chain.conv}
            self.last.add(chain.last)
        # Of two convolutions that are added, the one that stands deeper in the network takes the sum.
        for chain in sorted(chains, key=lambda c: -c.conv.only.position):
            self.follow(chain)
        ends = {chain.last: chain for chain in chains} | self.passes()
        for op in self.ops:
            if type(op.target) is nn.Linear and not watched(op.target) and (before := pool_before(op)):
                ends[op] = before[0]
                self.inside.update(before)
        steps, numbers, names = [], {}, {}
        for op in self.ops:
            if op.target is None:
                numbers[op] = 0
            elif op not in self.inside:
                steps.append(_step(op, ends.get(op), len(steps) + 1, numbers, names))
                numbers[op] = steps[-1].output
        steps = _hoisted(steps)
        final = {0: 0} | {step.output: i for i, step in enumerate(steps, 1)}
        return [_renumbered(step, final) for step in steps], {op: final[number] for op, number in numbers.items()}

    def follow(self, chain):
        """Extends a chain by the sum, the activation and the pool that follow it."""
        user, last = chain.last.user, chain.last
        if user in self.last | self.inside:  # the chain of the other summand has it
            return
        if user is not None and user.kind in ADDS and (other := other_addend(user, last)) is not None:
            chain.residual = other
            user = self.take(chain, user)
        if user is not None and user.kind in RELUS and is_unwatched(user):
            chain.relu = True
            user = self.take(chain, user)
            if chain.residual is None and user is not None and is_pool(user) and chain.conv.target.in_channels <= 4:
                chain.pool = True
                self.take(chain, user)
        elif (
            user is not None
            and chain.residual is None
            and POINTWISE.get(user.kind) in self.unary
            and is_unwatched(user)
        ):
            chain.unary = POINTWISE[user.kind]
            self.take(chain, user)

    def passes(self):
        """{last call: (module, its inputs)} of norms and gates that no convolution takes in, with what follows."""
        found = {}
        for op in self.ops:
            if op in self.last | self.inside:
                continue
            taken, relu = [op], relu_after(op)
            if is_norm(op) and relu is not None:
                module, inputs = nn.Sequential(_plain(op.target), nn.ReLU()), op.inputs
            elif (of_gate := gated(op)) is not None:
                inputs = list(of_gate)
                add = op.user
                free = add is not None and add.kind in ADDS and add not in self.last | self.inside
                if free and (other := other_addend(add, op)) is not None:
                    inputs, relu = [*inputs, other], relu_after(add)
                    taken.append(add)
                module = Gate(relu is not None)
            else:
                continue
            taken += [] if relu is None else [relu]
            self.inside.update(taken[:-1])
            found[taken[-1]] = module, tuple(inputs)
        return found

    def take(self, chain, op):
        self.inside.add(chain.last)
        self.last.remove(chain.last)
        self.last.add(op)
        chain.last = op
        return op.user


def _step(op, end, number, numbers, names):
    """The step of the call `op`, which ends a chain, or is a linear layer whose mean over all pixels is `end`, or neither."""
    if isinstance(end, _Chain):
        bn = None if end.norm is None else _plain(end.norm.target)
        residual = None if end.residual is None else numbers[end.residual]
        name = _unique(_name(end), names)
        x = numbers[end.conv.only]
        return ConvBn(name, end.conv.target, bn, x, residual, number, end.relu, end.pool, end.unary)
    if isinstance(end, tuple):
        module, inputs = end
        return Apply(_unique(op.name, names), module, tuple(numbers[source] for source in inputs), number)
    if end is not None:
        return Head(nn.AdaptiveAvgPool2d(1), op.target, numbers[end.args[0]], number, name=_unique(op.name, names))
    inputs = tuple(numbers[source] for source in op.inputs)
    module = op.target
    if isinstance(module, nn.Module) and with_activation(module) and not watched(module):
        module = _plain(module)
    if getattr(module, "inplace", False) is True:
        module = copy.copy(module)  # with the same parameters
        module.inplace = False
    plain = isinstance(module, nn.Module) and op.args == tuple(op.inputs) and not op.kwargs
    if not plain:
        module = Function(module, *templates(op))
    return Apply(_unique(op.name, names), module, inputs, number)


def _name(chain):
    """The path of the convolution, or of the sequence that holds just it and what follows it."""
    owner, _, last = chain.conv.name.rpartition(".")
    in_sequence = last == "0" and chain.norm is not None and chain.norm.name == f"{owner}.1"
    return owner if in_sequence else chain.conv.name


def _hoisted(steps):
    """`steps` with each projection right before the first convolution that reads the same value: a GPU may compute both in
    one launch."""
    found = []
    for step in steps:
        place = len(found)
        if isinstance(step, ConvBn) and step.op in ("conv", "conv_bn"):
            same = [i for i, s in enumerate(found) if isinstance(s, ConvBn) and s.input == step.input]
            place = same[0] if same else place
        found.insert(place, step)
    return found


def _renumbered(step, final):
    if isinstance(step, ConvBn):
        residual = None if step.residual is None else final[step.residual]
        return replace(step, input=final[step.input], residual=residual, output=final[step.output])
    reads = {"input": final[step.input]} if isinstance(step, Head) else {"inputs": tuple(final[v] for v in step.inputs)}
    return step._replace(**reads, output=final[step.output])


def _unique(name, names):
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"
