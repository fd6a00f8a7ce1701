"""The end of a GPU engine: global average pool and linear layer, in one kernel or in torch's operators."""

import torch
import torch.nn.functional as F
from torch import nn

from ... import dispatch
from ...kernels import layout


class PoolLinear:
    """`__call__(x)` -> logits [N, num_classes]. Like the layers of frozen/gpu/layers.py it keeps its tensors for life.
    `head`: a Head of frozen/network.py."""

    writes_out = False

    def __init__(self, head, dtype):
        self.head = head
        self.tensors = {name: value.clone() for name, value in self._values(dtype).items()}

    def _values(self, dtype):
        fc = self.head.fc
        return {n: t.detach().to(dtype) for n, t in (("weight", fc.weight), ("bias", fc.bias)) if t is not None}

    def load(self):
        for name, value in self._values(self.tensors["weight"].dtype).items():
            self.tensors[name].copy_(value)

    def __call__(self, x, residual=None, out=None):
        pooled = torch.flatten(self.head.avgpool(x), 1)
        return F.linear(pooled, self.tensors["weight"], self.tensors.get("bias"))


class FusedPoolLinear(PoolLinear):
    """One launch; the mean stays in float32."""

    def __init__(self, head, dtype, backend):
        super().__init__(head, dtype)
        self.kernel = dispatch.kernel(dispatch.Choice(backend, "frozen"), "pool_linear")

    def __call__(self, x, residual=None, out=None):
        weight = self.tensors["weight"]
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        self.kernel(layout.in_format(x, layout.CHANNELS_LAST), weight, self.tensors.get("bias"), out)
        return out


def options(head, device):
    """{name: maker(head, dtype)} of what may run `head` on this device. "torch" is always among them."""
    found, pool = {}, head.avgpool
    standard = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) and type(head.fc) is nn.Linear
    for name, backend in dispatch.BACKENDS.items() if standard else ():
        if dispatch.worth_measuring(backend, "pool_linear", device):
            found[name] = lambda head, dtype, name=name: FusedPoolLinear(head, dtype, name)
    return found | {"torch": PoolLinear}
