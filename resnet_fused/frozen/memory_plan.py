"""Which values of a frozen network share memory: each value takes a slot whose value no later step reads.

A chain of steps needs two slots. A residual block needs a third slot for its shortcut.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class MemoryPlan:
    """Values are taken and given back in the order of execution. A slot grows to the largest value that it holds."""

    sizes: list = field(default_factory=list)  # of each slot, in elements, or in bytes where `take` is told an itemsize
    free: list = field(default_factory=list)  # slots
    values: list = field(default_factory=list)  # (slot, shape) of each

    def take(self, shape, itemsize=1):
        """The number of a new value of `shape`. The value takes the free slot that fits best, else the slot that grows
        least."""
        size = math.prod(shape) * itemsize
        fits = [slot for slot in self.free if self.sizes[slot] >= size]
        if fits:
            slot = min(fits, key=lambda s: self.sizes[s])
        elif self.free:
            slot = max(self.free, key=lambda s: self.sizes[s])
        else:
            slot = len(self.sizes)
            self.sizes.append(0)
        if slot in self.free:
            self.free.remove(slot)
        self.sizes[slot] = max(self.sizes[slot], size)
        self.values.append((slot, tuple(shape)))
        return len(self.values) - 1

    def give_back(self, value):
        self.free.append(self.values[value][0])

    def allocate(self, dtypes, device):
        """[channels_last tensor of every value], each with a dtype of its own: views into one allocation per slot."""
        slots = [torch.empty(size, dtype=torch.uint8, device=device) for size in self.sizes]
        return [
            _channels_last(slots[slot], shape, dtype) for (slot, shape), dtype in zip(self.values, dtypes, strict=True)
        ]


def _channels_last(slot, shape, dtype):
    n, c, h, w = shape
    return slot[: n * c * h * w * dtype.itemsize].view(dtype).view(n, h, w, c).permute(0, 3, 1, 2)
