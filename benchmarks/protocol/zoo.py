"""The networks of the benchmarks, by name: of this package, of timm or torchvision, or a part of one of those.

`resnet34`, `timm/resnet50d`, `torchvision/fasterrcnn_resnet50_fpn.backbone`: after the point stands an attribute.
"""

import argparse
import importlib
import inspect
import warnings

import torch

from resnet_fused.commands.arguments import UsageError
from resnet_fused.models import CIFAR_MODELS, MODELS

OURS = MODELS | CIFAR_MODELS
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_operators = torch.library.Library("torchvision", "FRAGMENT")


def _torchvision_network(torchvision, name):
    builder = torchvision.models.get_model_builder(name)
    backbone = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    return builder(weights=None, **backbone)


# {package: (its module -> names of its networks, (its module, name) -> a network with random weights)}
OTHERS = {
    "timm": (lambda timm: timm.list_models(), lambda timm, name: timm.create_model(name)),
    "torchvision": (lambda torchvision: torchvision.models.list_models(), _torchvision_network),
}


def imported(package):
    """timm or torchvision. Where torchvision's binary part is for another torch, it does not load, and torchvision fails on
    import, since it registers fakes for two operators of that part. Networks need neither, so they are declared."""
    try:
        return importlib.import_module(package)
    except RuntimeError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                _operators.define(name + SCHEMA)
    return importlib.import_module(package)


def _parts(text):
    """("timm", "resnet50d", "layer1") of "timm/resnet50d.layer1"; package and part may be empty."""
    package, _, name = text.rpartition("/")
    name, _, part = name.partition(".")
    return package, name, part


def network_name(text):
    """`text`, if it names a network: a type of argparse."""
    package, name, _ = _parts(text)
    if package and package not in OTHERS:
        raise argparse.ArgumentTypeError(f"{package!r} is none of {', '.join(OTHERS)}")
    try:
        known = OTHERS[package][0](imported(package)) if package else OURS
    except ImportError as error:
        raise argparse.ArgumentTypeError(f"{package} is not installed ({error})") from error
    if name not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is no network of {package or 'this package'}")
    return text


def build(text):
    """The network of that name with random weights, as its package makes it."""
    package, name, part = _parts(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision: initial values will be others some day
        network = OTHERS[package][1](imported(package), name) if package else OURS[name]()
    try:
        return network.get_submodule(part)
    except AttributeError as error:
        raise UsageError(f"--model {text}: {error}") from None
