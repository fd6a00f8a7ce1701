"""The first convolution of a block and its projection in one launch, where a static engine measures that to be faster.

Both read the same input. Each keeps its own tensors, in the layer of its site, so refreshing and saving know of no pairs.
"""

import functools

from ... import dispatch
from . import layers


class Pair:
    """`__call__(x, None, (out, out2))` -> (out, out2): what the layers `first` and `second` compute, by one kernel."""

    writes_out = True

    def __init__(self, first, second, backend, config):
        self.first, self.second = first, second
        choice = dispatch.Choice(backend, "frozen", config)
        self.kernel = dispatch.kernel(choice, "conv_bn_relu_pair", "conv_bn_relu_pair")

    def __call__(self, x, residual, outs):
        (stride, padding, dilation, _), (stride2, padding2, *_) = self.first.geometry, self.second.geometry
        self.kernel(
            x, self.first.tensors["weight"], *self.first.norm(), outs[0], stride, padding, dilation,
            self.first.site.bn.eps, self.second.tensors["weight"], *self.second.norm(), outs[1], stride2, padding2,
            self.second.site.bn.eps,
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
    for backend in dispatch.TILED if fits(block) else ():
        entry = dispatch.BACKENDS.get(backend)
        if entry is None or not entry.takes(device.type) or entry.why_not() is not None:
            continue
        choices, _ = layers.choices(block.sites[0], dtype, device, backend)
        for config in choices[: layers.CHOICES]:
            found[f"{layers.named(backend, config)}, paired"] = functools.partial(_make, backend=backend, config=config)
    return found


def _make(block, dtype, backend, config):
    first, second = (layers.Epilogue(site, dtype, backend) for site in (block.sites[0], block.projection))
    return Pair(first, second, backend, config)
