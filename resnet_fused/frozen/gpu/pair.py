"""The first convolution of a block and its projection in one launch, where a GPU engine measures one launch to be
faster.

Both convolutions read the same value. Each keeps its own tensors, in a layer of its own, so that refreshing and saving
need no code for pairs.
"""

import functools

from ... import dispatch
from ..network import ConvBn
from . import layers

OP = "conv_bn_relu_pair"


class OneLaunch:
    """`__call__(x, None, (out, out2))` -> (out, out2): what the layers `first` and `second` compute, by one kernel."""

    writes_out = True

    def __init__(self, first, second, backend, config):
        self.first, self.second = first, second
        choice = dispatch.Choice(backend, "frozen", config)
        self.kernel = dispatch.kernel(choice, "conv_bn_relu_pair")

    def __call__(self, x, residual, outs):
        first, second = self.first, self.second
        self.kernel(
            x, first.tensors["weight"], first.norm(), outs[0], first.convolution,
            second.tensors["weight"], second.norm(), outs[1], second.convolution,
        )  # fmt: skip
        return outs


class TwoLaunches:
    """Both convolutions by the two layers that were chosen for each alone."""

    def __init__(self, pair, dtype):
        self.layers = [step.choice.make(step, dtype) for step in pair]

    def __call__(self, x, residual, outs):
        return tuple(layer(x, None, out) for layer, out in zip(self.layers, outs, strict=True))


def pairs(steps):
    """[(first, projection)] of neighbouring convolutions that read the same value."""
    found = zip(steps[1:], steps, strict=False)  # the projection runs before the first convolution of its block
    return [pair for pair in found if all(isinstance(s, ConvBn) for s in pair) and pair[0].input == pair[1].input]


def why_not(first, second):
    """None, or why the kernel cannot run `first` and the projection `second` together."""
    if not first.relu or first.adds or second.relu or second.adds:
        return "not a convolution with a ReLU beside one without"
    if not first.conv.groups == second.conv.groups == 1:
        return f"groups {first.conv.groups} and {second.conv.groups}, not 1"
    return None if tuple(second.conv.dilation) == (1, 1) else f"a projection with dilation {second.conv.dilation}"


def options(first, second, dtype, device):
    """{name: maker((first, second), dtype)} of what may run both in one launch on this device."""
    found = {}
    convolution = first.convolution(dtype)
    for name, backend in dispatch.BACKENDS.items() if why_not(first, second) is None else ():
        if not dispatch.worth_measuring(backend, OP, device, convolution) or backend.kernels[OP] is None:
            continue
        together = [c for c in backend.configurations(OP, convolution) if c.get("tile") != "apart"]
        for config in together[: layers.CHOICES]:
            found[f"{layers.named(name, config)}, paired"] = functools.partial(_make, backend=name, config=config)
    return found


def _make(pair, dtype, backend, config):
    first, second = (layers.Epilogue(step, dtype, backend) for step in pair)
    return OneLaunch(first, second, backend, config)
