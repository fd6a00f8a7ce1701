"""The ResNets that people have: how to build a small one, and how much of it should be fused."""

from functools import partial

from foreign import FrozenBatchNorm2d, OutOfPlace, Plain, regnet, timm, timm_net, tv_net
from torch import nn

import resnet_fused

layers = timm.layers


def ours(**kwargs):
    return resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5, **kwargs)


# id: (network, modules converted, fused convolutions or norms of one evaluation)
NETS = {
    "torchvision BasicBlock": (tv_net, 5, 12),
    "torchvision Bottleneck": (lambda: tv_net("Bottleneck"), 5, 17),
    "torchvision ResNeXt": (lambda: tv_net("Bottleneck", groups=4, width_per_group=16), 5, 17),
    "torchvision wide": (lambda: tv_net("Bottleneck", width_per_group=128), 5, 17),
    "torchvision dilated": (lambda: tv_net("Bottleneck", replace_stride_with_dilation=[False, True, True]), 5, 17),
    "torchvision, other eps and momentum": (lambda: tv_net(norm_layer=partial(nn.BatchNorm2d, eps=1e-2, momentum=None)), 5, 12),
    "torchvision, FrozenBatchNorm2d": (lambda: tv_net(norm_layer=FrozenBatchNorm2d), 5, 12),
    "torchvision, SyncBatchNorm": (lambda: tv_net(norm_layer=nn.SyncBatchNorm), 5, 12),
    "torchvision RegNet": (regnet, 4, 12),
    "torchvision RegNet, squeeze and excitation": (lambda: regnet(se_ratio=0.25), 4, 12),
    "timm, SyncBatchNorm": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(timm_net()), 4, 4),
    "torchvision, GroupNorm": (lambda: tv_net(norm_layer=partial(nn.GroupNorm, 4)), 4, 4),
    "timm BasicBlock": (timm_net, 5, 12),
    "timm Bottleneck": (lambda: timm_net("Bottleneck"), 5, 17),
    "timm resnet-d": (lambda: timm_net("Bottleneck", stem_type="deep", stem_width=32, avg_down=True), 5, 19),
    "timm resnet-t": (lambda: timm_net("Bottleneck", stem_type="deep_tiered", stem_width=32, avg_down=True), 5, 19),
    "timm SE": (lambda: timm_net("Bottleneck", block_args={"attn_layer": "se"}), 5, 21),
    "timm ECA": (lambda: timm_net(block_args={"attn_layer": "eca"}), 5, 16),
    "timm anti-aliased": (lambda: timm_net("Bottleneck", aa_layer=layers.BlurPool2d), 5, 17),
    "timm drop-path": (lambda: timm_net(drop_path_rate=0.2), 5, 15),
    "timm drop-block": (lambda: timm_net(drop_block_rate=0.1), 5, 12),
    "timm BatchNormAct2d": (lambda: timm_net(norm_layer=layers.BatchNormAct2d), 5, 16),
    "timm ConvNormAct": (lambda: nn.Sequential(*(layers.ConvNormAct(c, 8, 3) for c in (3, 8))), 2, 2),
    "timm, convolution as stem pool": (lambda: timm_net(replace_stem_pool=True), 5, 13),
    "ours, option A": (partial(ours, shortcut="zero_pad"), 0, 9),
    "ours, CIFAR": (partial(resnet_fused.CifarResNet, 1), 0, 7),
    "somebody's CIFAR block": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Plain(), Plain(8, 16, 2), Plain(16)), 3, 8),
    "somebody's block, out + shortcut": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), OutOfPlace(), OutOfPlace(8, 16, 2)), 2, 5),
    "nn.Sequential": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), 1, 1),
}  # fmt: skip


def fused_sites(rows):
    """Convolutions and norms that fused ops ran, by the rows (op, backend) that those recorded.

    A convolution that torch runs has a row of its own and one of the pass after it.
    """
    per_row = {"conv_bn_relu": 1, "conv_bn_relu_pool": 1, "conv_bn_relu_pair": 2, "add_relu": 1}
    alone = [op == "bn_relu" and (i == 0 or rows[i - 1][0] not in per_row) for i, (op, _) in enumerate(rows)]
    return sum(per_row.get(op, 0) for op, _ in rows) + sum(alone)
