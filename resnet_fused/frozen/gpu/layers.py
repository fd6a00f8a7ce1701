"""How a convolution of a GPU engine can run: [relu](bn(conv(x)) [+ residual]) [and max-pool], channels_last.

Unlike the classes of frozen/cpu/convolutions.py a layer keeps its tensors for life: `load()` reads the module's weights
again into the same memory, so that a captured CUDA graph sees them. `__call__(x, residual, out)` returns `out` where the
kernel can write there (`writes_out`), else a tensor of its own.
"""

import functools

import torch
import torch.nn.functional as F

from ... import dispatch
from ...kernels import layout
from ...kernels.hopper.plane import cuda as cuda_plane
from ..fold import fold

CHOICES = 3  # measured besides the tile that is predicted to be fastest; `tune` measures all
CLUSTERS = 2  # and so many whose slices are the blocks of a cluster


class Layer:
    """`takes`, `stored`: the dtypes of what it reads and of its result."""

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
    """The implicit GEMM of a backend with the batch norm in its epilogue: nothing is folded, so nothing is rounded twice."""

    writes_out = True

    def __init__(self, step, dtype, backend, config=None):
        super().__init__(step, dtype)
        self.early = bool(config and config.get("early_weights"))
        self._settle()
        # Looked up once: the TF32 flag of this moment is part of the engine.
        choice = dispatch.Choice(backend, "frozen", config)
        self.kernel = dispatch.kernel(choice, "conv_bn_relu", self.op)

    op = "conv_bn_relu"

    def load(self):
        super().load()
        self._settle()

    def _settle(self):
        """A kernel that fetches weights early must not come right behind the one that writes them."""
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
        return [self.tensors.get(name) for name in ("mean", "var", "bn_weight", "bn_bias")]

    def __call__(self, x, residual, out):
        step = self.step
        self.kernel(x, self.tensors["weight"], *self.norm(), residual, out, *self.geometry, step.bn.eps, step.relu)
        return out


class EpiloguePool(Epilogue):
    """The stem: convolution, batch norm, ReLU and the 3x3/2 max-pool in one kernel; the map between is never written."""

    op = "conv_bn_relu_pool"

    def __call__(self, x, residual, out):
        stride, padding = self.geometry[:2]
        self.kernel(x, self.tensors["weight"], *self.norm(), out, stride, padding, self.step.bn.eps)
        return out


class Folded(Layer):
    """torch's own convolution with the batch norm folded in, then what follows it."""

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


def _plain(make, step):
    return (lambda step, dtype: ThenPool(make(step, dtype), step.conv_shape())) if step.pool else make


def choices(site, dtype, device, backend):
    """(tiles and slices, those in clusters) of a backend's convolution at `site`, each predicted to be fastest first; none
    where it has none."""
    if backend not in dispatch.TILED:
        return [], []
    conv = site.conv
    x, weight = (
        torch.empty(shape, dtype=dtype, device=device).to(memory_format=layout.CHANNELS_LAST)
        for shape in (site.shape, conv.weight.shape)
    )
    ask = dispatch.BACKENDS[backend].kernel("conv_bn_relu", "conv_choices")
    text = ask(x, weight, conv.stride, conv.padding, conv.dilation, conv.groups, 32, clusters=True)
    found = dispatch.tiles(text)
    # The layer's own tensors, which `load()` alone writes, outside of the graph: csrc/cuda/conv_cluster.cuh.
    clusters = [config | {"early_weights": True} for config in found if "cluster" in config]
    return [config for config in found if "cluster" not in config], clusters


def named(backend, config):
    return f"{backend} {config['tile']} splits={config['splits']}" + (", cluster" if "cluster" in config else "")


def _suits(site, dtype, name):
    """Whether a backend of dispatch.NARROW is worth a measurement."""
    x, conv, narrow = site.shape, site.conv, dispatch.NARROW[name]
    if site.pool or not narrow.suits(x, conv.weight.shape):
        return False
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    return narrow.refusal(x, conv.weight.shape, dtype, *geometry) is None


def options(site, dtype, device):
    """{name: maker(site, dtype)} of the layers that may run `site` there, a maker of "torch" always among them."""
    found = {}
    for name, backend in dispatch.BACKENDS.items():
        if name in ("torch", "eager", "native") or not backend.takes(device.type) or backend.why_not() is not None:
            continue
        if name == "triton" and device.type == "cpu":  # the interpreter: numbers, no speed
            continue
        if name in dispatch.NARROW:
            if _suits(site, dtype, name):
                found[name] = lambda s, d, name=name: Epilogue(s, d, name)
                for config in cuda_plane.alternatives(site.shape[0]) if name == "cuda_plane" else ():
                    text = " ".join(f"{key}={value}" for key, value in config.items())
                    found[f"{name} {text}"] = functools.partial(Epilogue, backend=name, config=config)
            continue
        found[name] = _plain(lambda s, d, name=name: Epilogue(s, d, name), site)
        tiles, clusters = choices(site, dtype, device, name)
        for config in tiles[1 : 1 + CHOICES] + clusters[:CLUSTERS]:
            make = functools.partial(Epilogue, backend=name, config=config)
            found[named(name, config)] = _plain(make, site)
        if site.pool and name != "triton" and site.conv.groups == 1 and site.conv.dilation == (1, 1):
            found[f"{name}, pool fused"] = lambda s, d, name=name: EpiloguePool(s, d, name)
    if device.type == "cuda" and site.relu:
        found["cudnn"] = _plain(Cudnn, site)
    found["torch"] = _plain(Folded, site)
    return found
