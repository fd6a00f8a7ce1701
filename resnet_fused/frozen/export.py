"""A frozen network in torch's own operators, for runtimes that do not have this package."""

import copy

from torch import nn

from .fold import fold
from .network import ConvBn, Head, Network


class FoldedNetwork(Network):
    """A frozen network as a plain module: folded convolutions, ReLUs and sums in torch's own operators.

    `Engine.module` makes it, because no other runtime knows an engine's packed weights and kernels. x: [N, C, H, W] in
    the engine's dtype -> the result of the network. The module is a snapshot and shares no tensor with the model.
    """

    def __init__(self, steps, result, dtype):
        super().__init__(steps, result, lambda step: _folded(step, dtype))
        self.eval().requires_grad_(False)


def _folded(step, dtype):
    if not isinstance(step, ConvBn):
        module = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), step.fc) if isinstance(step, Head) else step.module
        )
        return copy.deepcopy(module).to("cpu", dtype)
    old = step.conv
    conv = nn.Conv2d(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups,
        device="cpu", dtype=dtype,
    )  # fmt: skip
    weight, bias = fold(old, step.bn)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv
