"""The models that compete. Each is made only when its turn comes, since making it (compiling, tuning, packing) is timed too."""

import copy
import functools
import importlib.metadata
import importlib.util

import torch
from torch import nn

import resnet_fused
from resnet_fused.commands import bench
from resnet_fused.frozen.fold import fold
from resnet_fused.measure import timing
from resnet_fused.measure.oracle import by_modules

from . import runtimes


class Missing(Exception):
    """Why a peer cannot run here."""


def _nhwc(t):
    return t.contiguous(memory_format=torch.channels_last)


def _live(model):
    """Our own networks are fused as they are; others are converted."""
    return resnet_fused.convert(copy.deepcopy(model))


def inference(model, x):
    """{name: maker}; a maker raises Missing, or returns a function of images (contiguous or channels_last). The function
    returns what the network returns, or, of runtimes, the list of its tensors."""
    makers = bench.contestants(model, x) | {"live": lambda: _live(model)}
    if x.device.type == "cpu" and x.dtype == torch.float32:
        makers["frozen, direct only"] = lambda: resnet_fused.freeze(model, x, exact=True)
    makers |= {
        "torch.compile": lambda: _compiled(model),
        "torch.compile max-autotune": lambda: _compiled(model, max_autotune=True),
        "torch.compile freezing": lambda: _compiled(model, freezing=True),
        "torch.compile max-autotune freezing": lambda: _compiled(model, freezing=True, max_autotune=True),
    }
    graphs = {"triton.cudagraphs": True}
    if x.device.type == "cuda":
        makers |= {
            "eager, graph": lambda: _graphed(makers["eager"](), x, torch.contiguous_format),
            "eager, channels_last, graph": lambda: _graphed(makers["eager, channels_last"](), x),
            "live, graph": lambda: _graphed(_live(model), x),
            "torch.compile graphs": lambda: _compiled(model, **graphs),
            "torch.compile max-autotune graphs": lambda: _compiled(model, max_autotune=True, **graphs),
            "torch.compile freezing graphs": lambda: _compiled(model, freezing=True, **graphs),
            "torch.compile max-autotune freezing graphs": lambda: _compiled(
                model, freezing=True, max_autotune=True, **graphs
            ),
            "cudnn fused": lambda: CudnnFused(model, x.dtype),
            "cudnn fused, graph": lambda: _graphed(CudnnFused(model, x.dtype), x),
            "tensorrt": lambda: _runtime("tensorrt", model, x),
            "tensorrt, graph": lambda: _graphed(_runtime("tensorrt", model, x), x, torch.contiguous_format),
            "cudnn frontend": _cudnn_frontend,
        }
    else:
        makers |= {name: functools.partial(_runtime, name, model, x) for name in runtimes.CPU}
    return makers


def training(model, x):
    """{name: maker} of functions x -> model output, with a copy of the model each, in training mode."""

    def live():
        return _live(model).to(memory_format=torch.channels_last).train()

    def eager(memory_format=torch.contiguous_format):
        return by_modules(model).to(memory_format=memory_format).train()

    return {
        "eager": eager,
        "eager, channels_last": functools.partial(eager, torch.channels_last),
        "live": live,
        "torch.compile": lambda: torch.compile(eager(torch.channels_last), dynamic=False),
        "torch.compile max-autotune": lambda: torch.compile(
            eager(torch.channels_last), dynamic=False, mode="max-autotune-no-cudagraphs"
        ),
    }


def _compiled(model, **settings):
    """max_autotune: convolutions too may be any kernel that inductor has."""
    if settings.get("max_autotune"):
        settings |= {"max_autotune_conv_backends": "ATEN,TRITON", "max_autotune_gemm_backends": "ATEN,TRITON"}
    if importlib.util.find_spec("torch._inductor") is None:
        raise Missing("this torch has no inductor")
    plain = by_modules(model).to(memory_format=torch.channels_last)
    run = torch.compile(plain, dynamic=False, options=settings)
    return lambda x: run(_nhwc(x))


def _graphed(function, x, memory_format=torch.channels_last):
    """`function` captured for inputs like `x` in its format; the call copies x in, as a server must."""
    static, outs = x.clone(memory_format=memory_format), []
    graph = timing.capture([lambda: outs.append(function(static))])

    def run(x):
        static.copy_(x)
        graph.replay()
        return outs[-1]  # of the capture; the others are of the warm-up

    return run


def why_missing(name, dtype):
    """Why the runtime `name` cannot run here in `dtype`, or None; loads nothing."""
    for package in runtimes.PACKAGES.get(name, ()):
        if importlib.util.find_spec(package) is None:
            extra = "" if name == "tensorrt" else " (pip install 'resnet_fused[bench]')"
            return f"the package {package} is not installed{extra}"
    able = runtimes.CPU.get(name, (dtype,))
    if dtype not in able:
        return f"{name} on CPUs is for {' and '.join(str(d)[6:] for d in able)}, not {str(dtype)[6:]}"
    return None


def version(name):
    """{"version": that of the runtime `name`}; of torch's models nothing, since every row has torch's."""
    packages = {"opencv": "opencv-python-headless", "mnn": "MNN"}
    return {"version": importlib.metadata.version(packages.get(name, name))} if name in runtimes.CPU else {}


def _runtime(name, model, x):
    if why := why_missing(name, x.dtype):
        raise Missing(why)
    try:
        return getattr(runtimes, name)(by_modules(model), x)
    except runtimes.Unsupported as why:
        raise Missing(str(why)) from None


def _cudnn_frontend():
    if importlib.util.find_spec("cudnn") is None:
        raise Missing(
            "the package nvidia-cudnn-frontend is not installed; 'cudnn fused' has the same kernels through torch"
        )
    raise Missing("not measured: 'cudnn fused' has the same kernels through torch")


class CudnnFused(nn.Module):
    """The network on cuDNN's own fused convolutions, with batch norm folded, as it would be written by hand for cuDNN."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.stem = self._conv(model.conv1, model.bn1)
        self.blocks = []
        for layer in (child for name, child in model.named_children() if name.startswith("layer")):
            for block in layer:
                pairs = [(getattr(block, f"conv{i}", None), getattr(block, f"bn{i}", None)) for i in (1, 2, 3)]
                convs = [self._conv(*pair) for pair in pairs if pair[0] is not None]
                down = block.downsample
                self.blocks.append((convs, self._conv(*down) if isinstance(down, nn.Sequential) else down))

    def _conv(self, conv, bn):
        weight, bias = (t.to(self.dtype) for t in fold(conv, bn))
        return _nhwc(weight), bias, (conv.stride, conv.padding, conv.dilation, conv.groups)

    @torch.no_grad()
    def forward(self, x):
        x = _nhwc(x)
        weight, bias, how = self.stem
        x = self.model.maxpool(torch.cudnn_convolution_relu(x, weight, bias, *how))
        for convs, down in self.blocks:
            out = x
            for weight, bias, how in convs[:-1]:
                out = torch.cudnn_convolution_relu(out, weight, bias, *how)
            if isinstance(down, tuple):
                x = nn.functional.conv2d(x, down[0], down[1], *down[2])
            elif down is not None:
                x = _nhwc(down(x))
            weight, bias, how = convs[-1]
            x = torch.cudnn_convolution_add_relu(out, weight, x, 1.0, bias, *how)
        return self.model.fc(torch.flatten(self.model.avgpool(x), 1))
