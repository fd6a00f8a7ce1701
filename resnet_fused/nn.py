"""The fused ops as modules, for blocks of one's own. Their children are torch's own and hold parameters, modes and keys.

The modules have an nn.BatchNorm2d as a child and are not derived from it: SyncBatchNorm.convert_sync_batchnorm, which replaces
every batch norm it finds, then replaces the child, and the ReLU stays.
"""

import torch
from torch import Tensor, nn

from . import ops
from .modules.eligible import check_not_scripted, why_not_batch_norm, why_not_convolution, why_not_fused, why_not_relu
from .modules.evaluation import conv_bn_relu, norm_relu
from .ops.define import check_residual

__all__ = ["AddReLU", "BNReLU", "ConvBNReLU"]


Size = int | tuple[int, int]

# These modules do not know how to synchronise nn.SyncBatchNorm over processes, so it runs by itself.
_NORM, _NORM_RELU = (("bn", why_not_batch_norm),), (("bn", why_not_batch_norm), ("relu", why_not_relu))
_CONV_NORM, _CONV_NORM_RELU = ((("conv", why_not_convolution), *checks) for checks in (_NORM, _NORM_RELU))


def _by_modules(z, bn, residual, relu):
    """relu(bn(z) [+ residual]) of children that are called one by one."""
    if isinstance(z, torch.Tensor):  # no proxy of torch.fx
        check_residual("forward", z.shape, z, residual)
    out = bn(z)
    if residual is not None:
        out += residual
    return out if relu is None else relu(out)


class ConvBNReLU(nn.Module):
    """relu(bn(conv(x)) [+ residual]). Children: conv (nn.Conv2d without bias), bn (nn.BatchNorm2d), relu (or None).

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as for nn.Conv2d.
        padding: as for nn.Conv2d; None keeps the size at stride 1 (odd kernels): dilation * (kernel_size - 1) // 2.
        eps, momentum: as for nn.BatchNorm2d.
        relu: False leaves the ReLU out, as a projection shortcut does.

    forward(x, residual=None): x [N, in_channels, H, W] -> [N, out_channels, P, Q], in the modes of the children. The
    residual is added before the ReLU. Children that carry hooks or were replaced are called one by one.
    """

    __prepare_scriptable__ = check_not_scripted

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | None = None,
        dilation: Size = 1,
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        if padding is None:
            kernel, dilations = ((v, v) if isinstance(v, int) else tuple(v) for v in (kernel_size, dilation))
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def why_not_fused(self, x: Tensor) -> str | None:
        """Why the children are called one by one on `x`, or None."""
        return why_not_fused(x, self._modules, _CONV_NORM if self.relu is None else _CONV_NORM_RELU)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.why_not_fused(x):
            return _by_modules(self.conv(x), self.bn, residual, self.relu)
        return conv_bn_relu(x, self.conv, self.bn, residual, relu=self.relu is not None)


class BNReLU(nn.Module):
    """relu(bn(x) [+ residual]). Children: bn (nn.BatchNorm2d), relu (or None).

    Args:
        num_features, eps, momentum, affine, track_running_stats: as for nn.BatchNorm2d.
        relu: False leaves the ReLU out.

    forward(x, residual=None): x [N, num_features, H, W] -> a new tensor like x.
    """

    __prepare_scriptable__ = check_not_scripted

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, eps, momentum, affine, track_running_stats)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def why_not_fused(self, x: Tensor) -> str | None:
        """Why the children are called one by one on `x`, or None."""
        return why_not_fused(x, self._modules, _NORM if self.relu is None else _NORM_RELU)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.why_not_fused(x):
            return _by_modules(x, self.bn, residual, self.relu)
        return norm_relu(x, self.bn, residual, relu=self.relu is not None)


class AddReLU(nn.Module):
    """relu(x + residual) in one pass. forward(x, residual) -> a new tensor like x; see `resnet_fused.ops.add_relu`."""

    __prepare_scriptable__ = check_not_scripted

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return ops.add_relu(x, residual)
