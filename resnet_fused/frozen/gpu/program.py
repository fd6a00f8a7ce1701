"""A frozen network as the launches of its layers, and the memory that these write to."""

from typing import NamedTuple

import torch

from ...kernels import layout
from ..memory_plan import MemoryPlan
from ..network import Apply, ConvBn


class Launch(NamedTuple):
    """One launch of a layer: the numbers of the values that it reads and writes, and the numbers of these in the memory
    plan where the layer writes there. A pair of convolutions writes two values, every other layer one."""

    layer: object
    x: int
    residual: int | None
    outs: tuple
    planned: tuple = ()


class _Module:
    """A module of the network as a layer. Its result may be its input, or a view of its input."""

    writes_out = False

    def __init__(self, module):
        self.module = module

    def __call__(self, x, residual, out):
        # torch has few operators for e4m3. A module that only moves values, or adds zeros, can work on the bytes.
        if x.dtype.itemsize == 1:
            return layout.in_format(self.module(x.view(torch.uint8)), layout.CHANNELS_LAST).view(x.dtype)
        return layout.in_format(self.module(x), layout.CHANNELS_LAST)


class Program:
    """`program(x)` -> logits of `steps`. All steps except the head have their layers (`step.run`), and `head` is the
    layer of the head. `in_pairs`: {(first, projection): their layer}. x: of `dtype`."""

    def __init__(self, steps, head, in_pairs, dtype, device):
        self.launches, plan, stored = _planned(*_arranged(steps[:-1], in_pairs, dtype))
        self.head, self.values = head, plan.allocate(stored, device)
        self.parts = [*(step.run for step in steps if isinstance(step, ConvBn)), head]
        parameters = sum(t.nbytes for part in self.parts for t in part.tensors.values())
        self.memory = {"activations": sum(plan.sizes), "parameters": parameters}

    def load(self):
        """Reads the weights of the modules again, into the same memory."""
        for part in self.parts:
            part.load()

    def __call__(self, x):
        return self.head(run(self.launches, self.values, x))


def _arranged(steps, in_pairs, dtype):
    """(launches, shapes, dtypes of the values). A layer reads the dtype that it `takes` and writes the dtype that it
    has `stored`. Where its input was not stored in that dtype, its `entry` converts it once for all readers."""
    launches, dtypes, shapes, entries = [], {0: dtype}, {}, {}
    new = -1  # numbers below 0 are values that no step has; an entry writes them
    first_of = {projection: first for first, projection in in_pairs}

    def launch(layer, x, residual, *written):
        """`written`: (value, shape, dtype) of each value."""
        for value, shape, stored in written:
            shapes[value], dtypes[value] = shape, stored
        launches.append(Launch(layer, x, residual, tuple(value for value, *_ in written)))

    for step in steps:
        if isinstance(step, Apply):
            launch(_Module(step.module), step.input, None, (step.output, None, dtypes[step.input]))
        elif step in first_of:
            both = first_of[step], step
            launch(in_pairs[both], step.input, None, *((s.output, s.out_shape(), s.run.stored) for s in both))
        elif step not in first_of.values():
            x, layer = step.input, step.run
            if layer.takes != dtypes[x]:
                if x not in entries:
                    entries[x], new = new, new - 1
                    launch(layer.entry, x, None, (entries[x], step.shape, layer.takes))
                x = entries[x]
            launch(layer, x, step.residual, (step.output, step.out_shape(), layer.stored))
    return launches, shapes, dtypes


def _last_uses(launches):
    return {value: i for i, launch in enumerate(launches) for value in (launch.x, launch.residual)}


def _planned(launches, shapes, dtypes):
    """(the launches with values of a plan, the MemoryPlan, its dtypes). A slot is free again after the last launch that
    reads its value, or a result that a module made of its value."""
    last = _last_uses(launches)
    for launch in reversed(launches):
        if isinstance(launch.layer, _Module):
            last[launch.x] = max(last[launch.x], last.get(launch.outs[0], len(launches)))
    plan, alive, planned, stored = MemoryPlan(), {}, [], []
    for i, launch in enumerate(launches):
        for out in launch.outs if launch.layer.writes_out else ():
            alive[out] = plan.take(shapes[out], dtypes[out].itemsize)
            stored.append(dtypes[out])
        planned.append(launch._replace(planned=tuple(alive.get(out) for out in launch.outs)))
        for value in [value for value in alive if last.get(value, len(launches)) == i]:
            plan.give_back(alive.pop(value))
    return planned, plan, stored


def run(launches, tensors, x):
    """The last value. `tensors`: the tensors of the plan."""
    values, last = {0: x}, _last_uses(launches)
    for i, launch in enumerate(launches):
        residual = None if launch.residual is None else values[launch.residual]
        outs = tuple(None if number is None else tensors[number] for number in launch.planned)
        if len(outs) == 1:
            values[launch.outs[0]] = launch.layer(values[launch.x], residual, outs[0])
        else:
            values |= zip(launch.outs, launch.layer(values[launch.x], residual, outs), strict=True)
        for value in {launch.x, launch.residual} & values.keys():
            if last[value] == i:
                del values[value]  # values outside of the plan are freed
    (result,) = values.values()
    return result
