"""The ReLU masks of one forward pass, a forward pass with given masks, and one whose convolutions are in float32."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ...ops.training.residual import relu_outputs
from ...ops.training.stem import relu_output


class ReluMasks(TorchDispatchMode):
    """While active, collects the masks of all ReLUs, of fused ops and of torch, in order: where the gradient passes."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        fused = packet in (torch.ops.resnet_fused.bn_relu, torch.ops.resnet_fused.conv_bn_relu) and args[-1]
        if fused or packet in (torch.ops.resnet_fused.add_relu, torch.ops.aten.relu, torch.ops.aten.relu_):
            self.masks.append(~(out.detach() <= 0))
        elif packet == torch.ops.resnet_fused.residual_blocks:
            self.masks += [~(t.detach() <= 0) for t in relu_outputs(out, *args)]
        elif packet == torch.ops.resnet_fused.stem:
            self.masks.append(~(relu_output(out, *args).detach() <= 0))
        return out


class WithMasks(TorchFunctionMode):
    """While active, ReLU number i multiplies by masks[i].

    A gradient is exact for the masks of the forward pass it belongs to. Near zero a rounding error decides whether a ReLU lets
    a value pass, and another decision changes the gradients far more than rounding does: by 1e-3 instead of 1e-5 of their
    norm (measured on a CPU, 2026-11: ResNet-34, batch 4 at 40x40, float32).
    """

    def __init__(self, masks):
        super().__init__()
        self.masks = iter(masks)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.relu, torch.relu_, torch.nn.functional.relu):
            return args[0] * next(self.masks)
        return func(*args, **(kwargs or {}))


class ConvolutionsInFloat32(TorchFunctionMode):
    """While active, torch's convolutions of 16-bit types are computed in float32 and rounded once."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.conv2d or args[0].dtype not in (torch.float16, torch.bfloat16):
            return func(*args, **(kwargs or {}))
        x, weight, *others = args
        return func(x.float(), weight.float(), *others, **(kwargs or {})).to(x.dtype)
