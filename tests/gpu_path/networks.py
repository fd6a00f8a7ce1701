"""Networks for a GPU that is not there: every kind of block and of stem, with few layers."""

import copy
import functools

import torch
from foreign import regnet, shorten, timm_net, tv_net
from torch import nn

import resnet_fused


def _gray(model):
    stem = model.conv1
    model.conv1 = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
    return model


def _layers(block="BasicBlock", **kwargs):
    return resnet_fused.ResNet(getattr(resnet_fused, block), [1, 2, 1, 1], num_classes=5, **kwargs)


# {name: (how to make it, image channels, sizes of images)}. Images of 32x32 give an ImageNet network maps of one pixel.
NETWORKS = {
    "basic": (_layers, 3, (32, 64)),
    "bottleneck": (lambda: _layers("Bottleneck"), 3, (32, 56)),
    "grouped": (lambda: _layers("Bottleneck", groups=32, width_per_group=4), 3, (32, 56)),
    "wide-groups": (lambda: _layers("Bottleneck", groups=2, width_per_group=64), 3, (64,)),
    "dilated": (lambda: _layers("Bottleneck", replace_stride_with_dilation=[False, True, True]), 3, (64,)),
    "gray": (lambda: _gray(_layers()), 1, (32, 64)),
    "zero-pad": (lambda: _layers(shortcut="zero_pad"), 3, (64,)),
    "cifar": (lambda: resnet_fused.CifarResNet(1), 3, (32, 8)),
    "cifar-gray": (lambda: _gray(resnet_fused.CifarResNet(1)), 1, (28, 8)),
    "torchvision": (lambda: resnet_fused.convert(shorten(tv_net())), 3, (32, 64)),
    "torchvision-bottleneck": (lambda: resnet_fused.convert(shorten(tv_net("Bottleneck"))), 3, (64,)),
    "timm": (lambda: resnet_fused.convert(shorten(timm_net())), 3, (32, 64)),
    "regnet": (lambda: resnet_fused.convert(regnet()), 3, (32,)),
}


@functools.cache
def _made(name):
    with torch.device("cuda"):  # initial values take no time there
        return NETWORKS[name][0]()


def network(name, dtype=torch.float32, memory_format=torch.contiguous_format):
    # A copy: to make and convert a network takes ten times as long.
    return copy.deepcopy(_made(name)).to(dtype, memory_format=memory_format)


def images(name, batch, size, dtype=torch.float32, memory_format=torch.contiguous_format):
    shape = batch, NETWORKS[name][1], size, size
    return torch.empty(shape, dtype=dtype, device="cuda", memory_format=memory_format)
