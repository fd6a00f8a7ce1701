"""How a convolution of a GPU engine can run: [relu](bn(conv(x)) [+ residual]) [and max-pool], channels_last.

Unlike the classes of frozen/cpu/convolutions.py a layer keeps its tensors for life: `load()` reads the module's weights
again into the same memory, so that a captured CUDA graph sees them. `__call__(x, residual, out)` returns `out` where
the kernel can write there (`writes_out`), else a tensor of its own.
"""

import functools

import torch
import torch.nn.functional as F

from ... import dispatch
from ...kernels import layout
from ...kernels.epilogue import NONE, RELU, Norm
from ...kernels.epilogue import Epilogue as AfterSum
from ..fold import fold

CHOICES = 3  # measured besides the tile with the best prediction; `tune` measures all
CLUSTERS = 2  # clusters measured, besides CHOICES


class Layer:
    """`takes`, `stored`: the dtypes of a layer's input and of its result."""

    writes_out = False

    def __init__(self, step, dtype):
        self.step, self.takes, self.stored = step, dtype, dtype
        conv = step.conv
        self.geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        self.tensors = {name: t.clone() for name, t in self._values(dtype).items()}

    def load(self):
        """Reads the weights and statistics of the module again, into the same memory."""
        for name, value in self._values(self.tensors["weight"].dtype).items():
            self.tensors[name].copy_(value)


class Epilogue(Layer):
    """A backend's implicit matrix product with the batch norm in its epilogue. Nothing is folded, so nothing is rounded
    twice."""

    writes_out = True

    def __init__(self, step, dtype, backend, config=None):
        super().__init__(step, dtype)
        self.early = bool(config and config.get("early_weights"))
        self._settle()
        # The launcher is looked up once: the TF32 flag at this time belongs to the engine.
        choice = dispatch.Choice(backend, "frozen", config)
        self.kernel = dispatch.kernel(choice, self.op)
        self.convolution = step.convolution(dtype)

    op = "conv_bn_relu"

    def load(self):
        super().load()
        self._settle()

    def _settle(self):
        """A kernel that fetches weights early must not run right behind the kernel that writes them."""
        if self.early and (device := self.tensors["weight"].device).type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def _values(self, dtype):
        conv, bn = self.step.conv, self.step.bn
        found = {"weight": layout.in_format(conv.weight.detach().to(dtype), layout.CHANNELS_LAST),
                 "mean": bn.running_mean.float(), "var": bn.running_var.float()}  # fmt: skip
        for name, parameter in (("bn_weight", bn.weight), ("bn_bias", bn.bias)):
            if parameter is not None:
                found[name] = parameter.detach().float()
        return found

    def norm(self):
        mean, var, weight, bias = (self.tensors.get(name) for name in ("mean", "var", "bn_weight", "bn_bias"))
        return Norm(mean, var, None, weight, bias, self.step.bn.eps)

    def __call__(self, x, residual, out):
        epilogue = AfterSum(self.norm(), residual, RELU if self.step.relu else NONE)
        self.kernel(x, self.tensors["weight"], epilogue, out, self.convolution)
        return out


class EpiloguePool(Epilogue):
    """The stem: convolution, batch norm, ReLU and the 3x3/2 max-pool in one kernel. The map before the pool is never
    written."""

    op = "conv_bn_relu_pool"

    def __call__(self, x, residual, out):
        self.kernel(x, self.tensors["weight"], AfterSum(self.norm()), out, self.convolution)
        return out


class Folded(Layer):
    """torch's own convolution with the batch norm folded in, then sum and ReLU."""

    def _values(self, dtype):
        weight, bias = fold(self.step.conv, self.step.bn)
        return {"weight": layout.in_format(weight.to(dtype), layout.CHANNELS_LAST), "bias": bias.to(dtype)}

    def __call__(self, x, residual, out):
        y = F.conv2d(x, self.tensors["weight"], self.tensors["bias"], *self.geometry)
        if residual is not None:
            y = y.add_(residual)
        return y.relu_() if self.step.relu else y


class Cudnn(Folded):
    """cuDNN's own fusion of convolution, bias, residual and ReLU."""

    def __call__(self, x, residual, out):
        weight, bias = self.tensors["weight"], self.tensors["bias"]
        if residual is not None:
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *self.geometry)
        return torch.cudnn_convolution_relu(x, weight, bias, *self.geometry)


class ThenPool:
    """A layer, then torch's max-pool: the stem in two steps. `shape`: of the map before the pool."""

    writes_out = False

    def __init__(self, layer, shape):
        self.layer, self.shape = layer, shape
        self.tensors, self.load, self.takes, self.stored = layer.tensors, layer.load, layer.takes, layer.stored

    def __call__(self, x, residual, out):
        between = None
        if self.layer.writes_out:
            between = torch.empty(self.shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
        return F.max_pool2d(self.layer(x, None, between), 3, 2, 1)


def _plain(make, step):
    return (lambda step, dtype: ThenPool(make(step, dtype), step.conv_shape())) if step.pool else make


def named(backend, config):
    if "tile" not in config:
        return " ".join([backend, *(f"{key}={value}" for key, value in config.items())])
    return f"{backend} {config['tile']} splits={config['splits']}" + (", cluster" if "cluster" in config else "")


def _configurations(backend, convolution, device):
    """The configurations of `backend` that are worth measuring here, where none needs a compiler."""
    found = [] if backend.compiles else dispatch.configurations(backend, "conv_bn_relu", convolution, device)
    # Slices that are the blocks of a cluster may fetch the layer's weights early: only `load()` writes these weights,
    # outside of the graph (csrc/cuda/conv/cluster.cuh).
    early = [config | {"early_weights": True} for config in found if config.keys() >= {"splits", "cluster"}]
    others = [config for config in found if not config.keys() >= {"splits", "cluster"}]
    return others[:CHOICES] + early[:CLUSTERS]


def options(step, dtype, device):
    """{name: maker(step, dtype)} of the layers that may run `step` on this device. A maker of "torch" is always among
    them."""
    found, convolution = {}, step.convolution(dtype)
    for name, backend in dispatch.BACKENDS.items():
        # An engine has no second backend for a launcher that returns False.
        if not backend.for_any_values or not dispatch.worth_measuring(backend, "conv_bn_relu", device, convolution):
            continue
        if backend.kernels["conv_bn_relu"] is None:
            continue
        found[name] = _plain(functools.partial(Epilogue, backend=name), step)
        for config in _configurations(backend, convolution, device):
            make = functools.partial(Epilogue, backend=name, config=config)
            found[named(name, config)] = _plain(make, step)
        fused = step.pool and backend.kernels.get("conv_bn_relu_pool") is not None
        fused = fused and dispatch.able(backend, "conv_bn_relu_pool", device)
        if fused and step.conv.groups == 1 and tuple(step.conv.dilation) == (1, 1):
            found[f"{name}, pool fused"] = functools.partial(EpiloguePool, backend=name)
    if device.type == "cuda" and step.relu:
        found["cudnn"] = _plain(Cudnn, step)
    found[dispatch.TORCH.name] = _plain(Folded, step)
    return found
