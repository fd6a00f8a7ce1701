"""The first convolution of a block and its projection in one launch, where a static engine measures that to be faster.

Both read the same input. Each keeps its own tensors, in the layer of its site, so refreshing and saving know of no pairs.
"""

import functools

from ... import dispatch
from . import layers

OP = "conv_bn_relu_pair"


class Pair:
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


class Apart:
    """The same by the two layers of its sites."""

    def __init__(self, block, dtype):
        self.layers = [site.way.make(site, dtype) for site in (block.sites[0], block.projection)]

    def __call__(self, x, residual, outs):
        return tuple(layer(x, None, out) for layer, out in zip(self.layers, outs, strict=True))


def fits(block):
    """Whether the kernel's signature has room for the first convolution of `block` and its projection."""
    if block.projection is None:
        return False
    first, second = block.sites[0], block.projection
    return (
        first.relu and not first.residual and not second.relu and first.shape == second.shape
        and first.conv.groups == second.conv.groups == 1 and tuple(second.conv.dilation) == (1, 1)
    )  # fmt: skip


def options(block, dtype, device):
    """{name: maker(block, dtype)} of pairs that may run there."""
    found = {}
    convolution = layers.convolution_of(block.sites[0], dtype)
    for name, backend in dispatch.BACKENDS.items() if fits(block) else ():
        if not backend.worth_measuring(OP, device.type, convolution) or backend.kernels[OP] is None:
            continue
        together = [c for c in backend.configurations(OP, convolution) if c.get("tile") != "apart"]
        for config in together[: layers.CHOICES]:
            found[f"{layers.named(name, config)}, paired"] = functools.partial(_make, backend=name, config=config)
    return found


def _make(block, dtype, backend, config):
    first, second = (layers.Epilogue(site, dtype, backend) for site in (block.sites[0], block.projection))
    return Pair(first, second, backend, config)
