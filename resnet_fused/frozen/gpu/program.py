"""A frozen network as the launches of its layers, and the memory that these write to."""

import copy
from typing import NamedTuple

import torch

from ...kernels import layout
from ...kernels.e4m3 import E4M3
from ..function import fill, values_of
from ..memory_plan import MemoryPlan
from ..network import Apply, ConvBn


class Launch(NamedTuple):
    """One launch of a layer: the numbers of the values that it reads and writes, and the numbers of these in the memory
    plan where the layer writes there. A pair of convolutions writes two values, every other layer one."""

    layer: object
    reads: tuple
    outs: tuple
    planned: tuple = ()

    def __call__(self, values, outs):
        """The results, a tuple. `outs`: the tensors of the plan, None where the layer does not write there."""
        if isinstance(self.layer, Module):
            return (self.layer(*values),)
        x, residual = (*values, None)[:2]
        if len(self.outs) == 1:
            return (self.layer(x, residual, outs[0]),)
        return self.layer(x, residual, outs)


class Module:
    """A module of the network as a layer: a snapshot in `dtype`. Its result may be a value that it reads, or a view of
    one."""

    writes_out = False

    def __init__(self, step, dtype, device):
        self.source, self.dtype = step.module, dtype
        self.module = copy.deepcopy(step.module).eval().to(device, dtype).requires_grad_(False)
        self.tensors = self.module.state_dict()

    def load(self):
        """Reads the parameters and buffers again, into the same memory."""
        for name, value in self.source.state_dict().items():
            self.tensors[name].copy_(value)

    def __call__(self, *values):
        # torch has few operators for e4m3. A module that only moves values, or adds zeros, can work on the bytes.
        if values and torch.is_tensor(values[0]) and values[0].dtype == E4M3:
            return layout.in_format(self.module(values[0].view(torch.uint8)), layout.CHANNELS_LAST).view(E4M3)
        y = self.module(*values)
        return layout.in_format(y, layout.CHANNELS_LAST) if torch.is_tensor(y) and y.dim() == 4 else y


class Program:
    """`program(x)` -> the result of `steps`. All convolutions have their layers (`step.run`). `heads`: {head: its layer}.
    `in_pairs`: {(first, projection): their layer}. x: of `dtype`."""

    def __init__(self, steps, result, heads, in_pairs, dtype, device):
        self.result, self.kept = result, values_of(result)
        modules = {step: Module(step, dtype, device) for step in steps if isinstance(step, Apply)}
        launches, shapes, dtypes = _arranged(steps, {**heads, **modules}, in_pairs, dtype)
        self.launches, plan, stored = _planned(launches, shapes, dtypes, self.kept)
        self.values = plan.allocate(stored, device)
        self.parts = [*(step.run for step in steps if isinstance(step, ConvBn)), *heads.values(), *modules.values()]
        parameters = sum(t.nbytes for part in self.parts for t in part.tensors.values())
        self.memory = {"activations": sum(plan.sizes), "parameters": parameters}

    def load(self):
        """Reads the weights of the modules again, into the same memory."""
        for part in self.parts:
            part.load()

    def __call__(self, x):
        return fill(self.result, run(self.launches, self.values, x, self.kept))


def _arranged(steps, others, in_pairs, dtype):
    """(launches, shapes, dtypes of the values). `others`: {step: layer} of what is no convolution. A layer reads the
    dtype that it `takes` and writes the dtype that it
    has `stored`. Where its input was not stored in that dtype, its `entry` converts it once for all readers."""
    launches, dtypes, shapes, entries = [], {0: dtype}, {}, {}
    new = -1  # numbers below 0 are values that no step has; an entry writes them
    first_of = {projection: first for first, projection in in_pairs}

    def launch(layer, reads, *written):
        """`written`: (value, shape, dtype) of each value."""
        for value, shape, stored in written:
            shapes[value], dtypes[value] = shape, stored
        launches.append(Launch(layer, reads, tuple(value for value, *_ in written)))

    for step in steps:
        if step in others:
            launch(others[step], step.reads, (step.output, None, dtypes[step.reads[0]] if step.reads else dtype))
        elif step in first_of:
            both = first_of[step], step
            launch(in_pairs[both], (step.input,), *((s.output, s.out_shape(), s.run.stored) for s in both))
        elif step not in first_of.values():
            x, layer = step.input, step.run
            if layer.takes != dtypes[x]:
                if x not in entries:
                    entries[x], new = new, new - 1
                    launch(layer.entry, (x,), (entries[x], step.shape, layer.takes))
                x = entries[x]
            launch(layer, (x, *step.reads[1:]), (step.output, step.out_shape(), layer.stored))
    return launches, shapes, dtypes


def _last_uses(launches, kept):
    return {v: i for i, launch in enumerate(launches) for v in launch.reads} | dict.fromkeys(kept, len(launches))


def _planned(launches, shapes, dtypes, kept):
    """(the launches with values of a plan, the MemoryPlan, its dtypes). A slot is free again after the last launch that
    reads its value, or a result that a module made of its value."""
    last = _last_uses(launches, kept)
    for i, launch in reversed(list(enumerate(launches))):
        if isinstance(launch.layer, Module):
            for value in launch.reads:
                last[value] = max(last[value], last.get(launch.outs[0], i))
    plan, alive, planned, stored = MemoryPlan(), {}, [], []
    for i, launch in enumerate(launches):
        for out in launch.outs if launch.layer.writes_out else ():
            alive[out] = plan.take(shapes[out], dtypes[out].itemsize)
            stored.append(dtypes[out])
        planned.append(launch._replace(planned=tuple(alive.get(out) for out in launch.outs)))
        for value in [value for value in alive if last.get(value, i) == i]:
            plan.give_back(alive.pop(value))
    return planned, plan, stored


def run(launches, tensors, x, kept):
    """{number: value} of the values in `kept`. `tensors`: the tensors of the plan."""
    values, last = {0: x}, _last_uses(launches, kept)
    for i, launch in enumerate(launches):
        outs = tuple(None if number is None else tensors[number] for number in launch.planned)
        values |= zip(launch.outs, launch([values[v] for v in launch.reads], outs), strict=True)
        for value in set(launch.reads):
            if last[value] == i:
                del values[value]  # values outside of the plan are freed
    return {value: values[value] for value in kept}
