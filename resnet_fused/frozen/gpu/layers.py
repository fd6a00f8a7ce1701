"""How a convolution of a static engine can run: [relu](bn(conv(x)) [+ residual]) [and max-pool], channels_last.

Unlike the classes of frozen/cpu/convolutions.py a layer keeps its tensors for life: `load()` reads the module's weights
again into the same memory, so that a captured CUDA graph sees them. `__call__(x, residual, out)` returns `out` where the
kernel can write there (`writes_out`), else a tensor of its own.
"""

import functools

import torch
import torch.nn.functional as F

from ... import dispatch
from ...kernels import layout
from ...kernels.epilogue import NONE, RELU, Norm
from ...kernels.epilogue import Epilogue as AfterSum
from ...kernels.shapes import Convolution, pooled_shape
from ..fold import fold

CHOICES = 3  # measured besides the tile that is predicted to be fastest; `tune` measures all
CLUSTERS = 2  # and so many whose slices are the blocks of a cluster


class Layer:
    """`takes`, `stored`: the dtypes of what it reads and of its result."""

    writes_out = False

    def __init__(self, site, dtype):
        self.site, self.takes, self.stored = site, dtype, dtype
        conv = site.conv
        self.geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        self.tensors = {name: t.clone() for name, t in self._values(dtype).items()}

    def load(self):
        """Reads the weights and statistics of the module again, into the same memory."""
        for name, value in self._values(self.tensors["weight"].dtype).items():
            self.tensors[name].copy_(value)


class Epilogue(Layer):
    """The implicit GEMM of a backend with the batch norm in its epilogue: nothing is folded, so nothing is rounded twice."""

    writes_out = True

    def __init__(self, site, dtype, backend, config=None):
        super().__init__(site, dtype)
        self.early = bool(config and config.get("early_weights"))
        self._settle()
        # Looked up once: the TF32 flag of this moment is part of the engine.
        choice = dispatch.Choice(backend, "frozen", config)
        self.kernel = dispatch.kernel(choice, self.op)
        self.convolution = convolution_of(site, dtype)

    op = "conv_bn_relu"

    def load(self):
        super().load()
        self._settle()

    def _settle(self):
        """A kernel that fetches weights early must not come right behind the one that writes them."""
        if self.early and (device := self.tensors["weight"].device).type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def _values(self, dtype):
        conv, bn = self.site.conv, self.site.bn
        found = {"weight": layout.in_format(conv.weight.detach().to(dtype), layout.CHANNELS_LAST),
                 "mean": bn.running_mean.float(), "var": bn.running_var.float()}  # fmt: skip
        for name, parameter in (("bn_weight", bn.weight), ("bn_bias", bn.bias)):
            if parameter is not None:
                found[name] = parameter.detach().float()
        return found

    def norm(self):
        mean, var, weight, bias = (self.tensors.get(name) for name in ("mean", "var", "bn_weight", "bn_bias"))
        return Norm(mean, var, None, weight, bias, self.site.bn.eps)

    def __call__(self, x, residual, out):
        epilogue = AfterSum(self.norm(), residual, RELU if self.site.relu else NONE)
        self.kernel(x, self.tensors["weight"], epilogue, out, self.convolution)
        return out


class EpiloguePool(Epilogue):
    """The stem: convolution, batch norm, ReLU and the 3x3/2 max-pool in one kernel; the map between is never written."""

    op = "conv_bn_relu_pool"

    def __call__(self, x, residual, out):
        self.kernel(x, self.tensors["weight"], AfterSum(self.norm()), out, self.convolution)
        return out


class Folded(Layer):
    """torch's own convolution with the batch norm folded in, then what follows it."""

    def _values(self, dtype):
        weight, bias = fold(self.site.conv, self.site.bn)
        return {"weight": layout.in_format(weight.to(dtype), layout.CHANNELS_LAST), "bias": bias.to(dtype)}

    def __call__(self, x, residual, out):
        y = F.conv2d(x, self.tensors["weight"], self.tensors["bias"], *self.geometry)
        if residual is not None:
            y = y.add_(residual)
        return y.relu_() if self.site.relu else y


class Cudnn(Folded):
    """cuDNN's own fusion of convolution, bias, residual and ReLU."""

    def __call__(self, x, residual, out):
        weight, bias = self.tensors["weight"], self.tensors["bias"]
        if residual is not None:
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *self.geometry)
        return torch.cudnn_convolution_relu(x, weight, bias, *self.geometry)


class ThenPool:
    """A layer, then torch's max-pool: the stem in two steps. `shape`: of the map between."""

    writes_out = False

    def __init__(self, layer, shape):
        self.layer, self.shape = layer, shape
        self.tensors, self.load, self.takes, self.stored = layer.tensors, layer.load, layer.takes, layer.stored

    def __call__(self, x, residual, out):
        between = None
        if self.layer.writes_out:
            between = torch.empty(self.shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
        return F.max_pool2d(self.layer(x, None, between), 3, 2, 1)


def convolution_of(site, dtype):
    """The shapes.Convolution of `site`."""
    conv = site.conv
    geometry = map(tuple, (conv.stride, conv.padding, conv.dilation))
    return Convolution(tuple(site.shape), tuple(conv.weight.shape), dtype, *geometry, conv.groups)


def conv_shape(site):
    """[N, K, P, Q] of the convolution of `site`, without its pool."""
    return convolution_of(site, None).out_shape


def out_shape(site):
    """[N, K, P, Q] of what `site` computes."""
    return pooled_shape(conv_shape(site)) if site.pool else conv_shape(site)


def _plain(make, site):
    return (lambda site, dtype: ThenPool(make(site, dtype), conv_shape(site))) if site.pool else make


def named(backend, config):
    if "tile" not in config:
        return " ".join([backend, *(f"{key}={value}" for key, value in config.items())])
    return f"{backend} {config['tile']} splits={config['splits']}" + (", cluster" if "cluster" in config else "")


def _configurations(backend, convolution):
    """Those of `backend` that are worth measuring here, where no compiler has to run for one."""
    found = [] if backend.compiles else backend.configurations("conv_bn_relu", convolution)
    # Slices that are the blocks of a cluster may fetch the layer's weights early: `load()` alone writes these, outside of
    # the graph (csrc/cuda/conv/cluster.cuh).
    early = [config | {"early_weights": True} for config in found if config.keys() >= {"splits", "cluster"}]
    others = [config for config in found if not config.keys() >= {"splits", "cluster"}]
    return others[:CHOICES] + early[:CLUSTERS]


def options(site, dtype, device):
    """{name: maker(site, dtype)} of the layers that may run `site` there, a maker of "torch" always among them."""
    found, convolution = {}, convolution_of(site, dtype)
    for name, backend in dispatch.BACKENDS.items():
        # An engine has no other way where a launcher would give up.
        if not backend.for_any_values or not backend.worth_measuring("conv_bn_relu", device.type, convolution):
            continue
        if backend.kernels["conv_bn_relu"] is None:
            continue
        found[name] = _plain(functools.partial(Epilogue, backend=name), site)
        for config in _configurations(backend, convolution):
            make = functools.partial(Epilogue, backend=name, config=config)
            found[named(name, config)] = _plain(make, site)
        fused = site.pool and backend.kernels.get("conv_bn_relu_pool") is not None
        if fused and site.conv.groups == 1 and tuple(site.conv.dilation) == (1, 1):
            found[f"{name}, pool fused"] = functools.partial(EpiloguePool, backend=name)
    if device.type == "cuda" and site.relu:
        found["cudnn"] = _plain(Cudnn, site)
    found[dispatch.TORCH.name] = _plain(Folded, site)
    return found
