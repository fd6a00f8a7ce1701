"""The steps of any network, from the graph of its forward: see network.py for what a step is."""

import copy
import operator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..conversion.effects import NotTraceable
from ..conversion.whole import flat_graph
from ..modules.eligible import watched, why_not_convolution, why_not_pool
from ..modules.norms import why_not_norm, with_activation
from ..modules.torchs_own import why_not_torchs_own
from .function import Function, Value, template_of
from .functional import Calls, Op, observe, templates
from .network import Apply, ConvBn, Head, Network

POINTWISE = {
    nn.Hardswish: "hardswish", F.hardswish: "hardswish", nn.SiLU: "silu", F.silu: "silu", nn.ReLU6: "relu6",
    F.relu6: "relu6", nn.Sigmoid: "sigmoid", torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid",
    nn.Hardsigmoid: "hardsigmoid", F.hardsigmoid: "hardsigmoid",
}  # fmt: skip
RELUS = (nn.ReLU, F.relu, torch.relu, "relu")
ADDS = (operator.add, torch.add, "add")


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
        chains = [_Chain(op, norm, norm or op) for op in self.ops if _is_convolution(op) for norm in [_norm_of(op)]]
        for chain in chains:
            self.inside |= set() if chain.norm is None else {chain.conv}
            self.last.add(chain.last)
        # Of two convolutions that are added, the one that stands deeper in the network takes the sum.
        for chain in sorted(chains, key=lambda c: -c.conv.only.position):
            self.follow(chain)
        ends = {chain.last: chain for chain in chains}
        for op in self.ops:
            if type(op.target) is nn.Linear and not watched(op.target) and (before := _pool_before(op)):
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
        if user is not None and user.kind in ADDS and (other := _other_addend(user, last)) is not None:
            chain.residual = other
            user = self.take(chain, user)
        if user is not None and user.kind in RELUS and _is_unwatched(user):
            chain.relu = True
            user = self.take(chain, user)
            if chain.residual is None and user is not None and _is_pool(user) and chain.conv.target.in_channels <= 4:
                chain.pool = True
                self.take(chain, user)
        elif (
            user is not None
            and chain.residual is None
            and POINTWISE.get(user.kind) in self.unary
            and _is_unwatched(user)
        ):
            chain.unary = POINTWISE[user.kind]
            self.take(chain, user)

    def take(self, chain, op):
        self.inside.add(chain.last)
        self.last.remove(chain.last)
        self.last.add(op)
        chain.last = op
        return op.user


def _is_unwatched(op):
    return op.only is not None and not (isinstance(op.target, nn.Module) and watched(op.target))


def _is_convolution(op):
    if op.only is None or not isinstance(op.target, nn.Conv2d) or watched(op.target) or op.only.shape is None:
        return False
    return why_not_convolution(op.target) in (None, "has a bias") and len(op.only.shape) == 4


def _norm_of(conv):
    """The batch norm that alone reads the result of the call `conv`, if it can be folded."""
    op = conv.user
    if op is None or not _is_unwatched(op):
        return None
    bn = op.target
    if with_activation(bn) or type(bn) is nn.SyncBatchNorm:
        known = {"weight", "bias"} <= bn._parameters.keys()
    else:
        known = isinstance(bn, nn.Module) and hasattr(bn, "running_var") and why_not_norm(bn) is None
    return op if known and bn.running_var is not None else None


def _other_addend(add, last):
    """The value that the call `add` adds to `last`, if it is a map of the same shape."""
    if len(add.args) != 2 or add.kwargs or add.args[0] is add.args[1]:
        return None
    other = add.args[1] if add.args[0] is last else add.args[0]
    return other if isinstance(other, Op) and other.shape == last.shape and len(last.shape) == 4 else None


def _is_pool(op):
    if isinstance(op.target, nn.Module):
        return why_not_pool(op.target) is None
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = dict(zip(names, op.args[1:], strict=False)) | op.kwargs
    wanted = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False, "return_indices": False}
    plain = {"padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False, "stride": None} | given
    return op.target is F.max_pool2d and plain == wanted


def _pool_before(linear):
    """The calls between the map and `linear` where they are the mean of all pixels, else an empty list."""
    op, found = linear.only, []
    flattened = op is not None and op.user is linear and _flattens(op)
    if flattened:
        found, op = [op], op.args[0]
    if op is None or len(op.users) != 1 or not _is_mean(op, flat=not flattened) or len(op.args[0].shape or ()) != 4:
        return []
    return [op, *found]


def _flattens(op):
    """Whether a call flattens everything but the batch."""
    if type(op.target) is nn.Flatten:
        return (op.target.start_dim, op.target.end_dim) == (1, -1) and _is_unwatched(op)
    given = dict(zip(("start_dim", "end_dim"), op.args[1:], strict=False)) | op.kwargs
    return op.target in (torch.flatten, "flatten") and given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})


def _is_mean(op, flat):
    """Whether a call is the mean of all pixels, as [N, C] or else as [N, C, 1, 1]."""
    if type(op.target) is nn.AdaptiveAvgPool2d:
        return not flat and op.target.output_size in (1, (1, 1)) and _is_unwatched(op)
    if op.target is F.adaptive_avg_pool2d:
        return not flat and len(op.args) == 2 and op.args[1] in (1, (1, 1), [1, 1])
    if op.target in ("mean", torch.mean):
        names = ("dim", "keepdim")
        given = dict(zip(names, op.args[1:], strict=False)) | op.kwargs
        dims = given.pop("dim", None)
        keeps = given.pop("keepdim", False)
        whole = isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]
        return whole and not given and keeps is not flat
    return False


def _step(op, end, number, numbers, names):
    """The step of the call `op`, which ends a chain, or is a linear layer whose mean over all pixels is `end`, or neither."""
    if isinstance(end, _Chain):
        bn = None if end.norm is None else _plain(end.norm.target)
        residual = None if end.residual is None else numbers[end.residual]
        name = _unique(_name(end), names)
        x = numbers[end.conv.only]
        return ConvBn(name, end.conv.target, bn, x, residual, number, end.relu, end.pool, end.unary)
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
