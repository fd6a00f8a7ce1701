"""The passes that exist only inside the ops of whole blocks in training, as calls that can be made, and tuned, alone.

There are three: a convolution with the statistics of its output (its kernel, or torch's convolution and a pass), the end of a
block whose shortcut is a projection, and the backward of a batch norm whose gradient has been masked already. Every other pass
of a block also runs inside `modules.training.one_op_at_a_time`.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels.epilogue import NONE, Norm
from ...ops.training import Unit, encoding
from ...ops.training.unit import INVSTD, MEAN, add_two, conv_backward, convolve, empty_output

AFFINE = ("weight", "bias")


def conv_stats(x, weight, stride, padding, dilation, groups, eps):
    """(z, mean, 1 / sqrt(var + eps)) of z = conv(x, weight); in float64 by torch."""
    if x.dtype == torch.float64:
        z = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
        var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
        return z, mean, torch.rsqrt(var + eps)
    z, stats = convolve(x, Unit(weight, None, None, None, None, stride, padding, dilation, groups, eps))
    return z, stats[MEAN], stats[INVSTD]


def bn_add_bn_relu(x, mean, var_or_invstd, weight, bias, z, mean_z, var_or_invstd_z, weight_z, bias_z):
    """relu(bn(x) + bn(z)) with the statistics of a batch."""
    norm = Norm(mean, None, var_or_invstd, weight, bias, None)
    norm_z = Norm(mean_z, None, var_or_invstd_z, weight_z, bias_z, None)
    return add_two(x, norm, z, norm_z, torch.empty_like(x))


def conv_input_grad(grad, weight, size, stride, padding, dilation, groups):
    """The gradient of the input, of `size`, of a convolution."""
    x = grad.new_empty(grad.shape[0], weight.shape[1] * groups, *size).contiguous(memory_format=torch.channels_last)
    unit = Unit(weight, None, None, None, None, stride, padding, dilation, groups, 0.0)
    return conv_backward(grad, x, unit, True, False)[0]


PASSES = {
    "conv_stats": conv_stats,
    "bn_add_bn_relu": bn_add_bn_relu,
    "conv_input_grad": conv_input_grad,
}


class Recorder(TorchDispatchMode):
    """`calls`: [(op, [(argument name, tensor or value)])] of the blocks and stems that run inside it."""

    def __init__(self):
        super().__init__()
        self.calls, self.inside = [], True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "resnet_fused" and func.overloadpacket.__name__ in ("residual_blocks", "stem"):
            x, self.inside = args[0], func.overloadpacket.__name__ == "residual_blocks"
            for block in encoding.decode(*args[1:5]):
                x = self._block(x, block)
        return func(*args, **(kwargs or {}))

    def _block(self, x, block):
        z = x
        for unit in block.units:
            z = self._convolution(z, unit)
        if block.projection is not None:
            shortcut, last = self._convolution(x, block.projection), block.units[-1]
            if last.mean is None and block.projection.mean is None:
                norms = (_norm(z, last, ""), _norm(z, block.projection, "_z"))
                self.calls.append(("bn_add_bn_relu", [("x", z), *norms[0], ("z", shortcut), *norms[1]]))
            self._backward(shortcut, block.projection)
        self._backward(z, block.units[-1])
        return z

    def _backward(self, z, unit):
        if unit.mean is None:
            mean, var_or_invstd, weight, _ = _norm(z, unit, "")
            flags = [
                ("eps", None),
                ("activation", NONE),
                ("want_x", True),
                ("want_affine", True),
                ("want_residual", False),
            ]
            tensors = [("grad", z), ("x", z), ("out", None), mean, var_or_invstd, weight]
            self.calls.append(("bn_relu_backward", [*tensors, *flags]))

    def _convolution(self, x, unit):
        if unit.mean is None:
            where = [(name, getattr(unit, name)) for name in ("stride", "padding", "dilation", "groups", "eps")]
            self.calls.append(("conv_stats", [("x", x), ("weight", unit.weight), *where]))
        z = empty_output(x, unit)
        # On a CPU a rule by shape decides (kernels/cpu.py). The stem, which is not `inside`, reads the image: it needs no
        # gradient.
        if x.device.type == "cuda" and self.inside:
            where = [(name, getattr(unit, name)) for name in ("stride", "padding", "dilation", "groups")]
            tensors = [("grad", z), ("weight", unit.weight), ("size", tuple(x.shape[2:]))]
            self.calls.append(("conv_input_grad", [*tensors, *where]))
        return z


def _norm(z, unit, suffix):
    statistics = [(name + suffix, z.new_empty(z.shape[1], dtype=torch.float32)) for name in ("mean", "var_or_invstd")]
    return *statistics, *((name + suffix, getattr(unit, f"bn_{name}")) for name in AFFINE)
