"""The end of a static engine: global average pool and linear layer, in one kernel or in torch's operators."""

import torch
import torch.nn.functional as F
from torch import nn

from ... import dispatch
from ...kernels import layout


class Head:
    """`__call__(x)` -> logits [N, num_classes]; keeps its tensors for life, as the layers of frozen/gpu/layers.py."""

    def __init__(self, model, dtype):
        self.model = model
        self.tensors = {name: value.clone() for name, value in self._values(dtype).items()}

    def _values(self, dtype):
        fc = self.model.fc
        return {n: t.detach().to(dtype) for n, t in (("weight", fc.weight), ("bias", fc.bias)) if t is not None}

    def load(self):
        for name, value in self._values(self.tensors["weight"].dtype).items():
            self.tensors[name].copy_(value)

    def __call__(self, x):
        pooled = torch.flatten(self.model.avgpool(x), 1)
        return F.linear(pooled, self.tensors["weight"], self.tensors.get("bias"))


class FusedHead(Head):
    """One launch; the mean stays in float32."""

    def __init__(self, model, dtype, backend):
        super().__init__(model, dtype)
        self.kernel = dispatch.kernel(dispatch.Choice(backend, "frozen"), "pool_linear")

    def __call__(self, x):
        weight = self.tensors["weight"]
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        self.kernel(layout.in_format(x, layout.CHANNELS_LAST), weight, self.tensors.get("bias"), out)
        return out


def options(model, device):
    """{name: maker(model, dtype)} of the heads that may run `model` there; "torch" is always among them."""
    found, pool = {}, model.avgpool
    standard = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) and type(model.fc) is nn.Linear
    for name, backend in dispatch.BACKENDS.items() if standard else ():
        if backend.worth_measuring("pool_linear", device.type):
            found[name] = lambda model, dtype, name=name: FusedHead(model, dtype, name)
    return found | {"torch": Head}
