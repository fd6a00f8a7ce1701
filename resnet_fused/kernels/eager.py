"""Two backends in torch's own operators, and the double backward of batch norm.

`eager` is the fallback of every op. `torch` runs torch's convolution, and a pass of another backend follows it. All
arithmetic is float32, as in torch's own kernels for 16-bit types. float64 stays float64.
"""

import torch

from .backend import ANY, Backend
from .epilogue import NONE, Epilogue, activate, saves_output


def _wide(t):
    return t if t.dtype == torch.float64 else t.float()


def _channel(t, like):
    return _wide(t).view(1, -1, *[1] * (like.dim() - 2))


def _others(x):
    return [d for d in range(x.dim()) if d != 1]


def _invstd(norm):
    return _wide(norm.invstd) if norm.of_batch else torch.rsqrt(_wide(norm.var) + norm.eps)


def _masked(grad, out, grad2=None):
    if grad2 is not None:
        grad = grad + grad2  # torch adds 16-bit types in float32 and rounds once
    return grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)


def add_relu(x, residual, out):
    torch.add(x, residual, out=out).relu_()


def add_relu_backward(grad, out, grad_in):
    torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad_in)


def stats(x, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps):
    var, batch_mean = torch.var_mean(_wide(x), _others(x), correction=0)
    mean.copy_(batch_mean)
    invstd.copy_(torch.rsqrt(var + eps))
    factor = momentum if num_batches_tracked is None else 1.0 / _wide(num_batches_tracked)
    count = x.numel() // x.shape[1]
    for running, batch in ((running_mean, batch_mean), (running_var, var * (count / max(count - 1, 1)))):
        if running is not None:
            running.copy_(_wide(running) * (1 - factor) + batch * factor)


def merge_stats(parts, mean, invstd, var, share, count, eps):
    parts, channels = parts.double(), mean.shape[0]
    counts = parts[:, -1:]
    # A process without values has no mean. The variance of one value is NaN (0 / 0).
    means = torch.where(counts > 0, parts[:, :channels], 0.0)
    m2 = torch.where(counts > 1, parts[:, channels:-1] * (counts - 1), 0.0)
    total = counts.sum(0)
    merged = (counts * means).sum(0) / total
    m2 = (m2 + counts * (means - merged).square()).sum(0)
    mean.copy_(merged)
    invstd.copy_((m2 / total + eps).rsqrt())
    var.copy_(m2 / (total - 1))
    share.copy_(count / total)


def apply(x, epilogue, out):
    norm, residual, activation = epilogue
    y = (_wide(x) - _channel(norm.mean, x)) * _channel(_invstd(norm), x)
    if norm.weight is not None:
        y = y * _channel(norm.weight, x)
    if norm.bias is not None:
        y = y + _channel(norm.bias, x)
    if residual is not None:
        y = y.to(x.dtype) + residual  # rounded first, as modules do: see gather_norm in csrc/cpu/base/norm.h
    out.copy_(activate(y, activation))


def apply_two(x, norm, z, norm_z, out):
    shortcut = torch.empty_like(z)
    apply(z, Epilogue(norm_z, None, NONE), shortcut)
    apply(x, Epilogue(norm, shortcut), out)


def backward_reduce(grad, x, out, norm, sum_g, sum_gx, activation, grad2=None, masked=None):
    g = _masked(grad, out if saves_output(activation) else None, grad2)
    if masked is not None:
        masked.copy_(g)
    g = _wide(g)
    sum_g.copy_(g.sum(_others(g)))
    if sum_gx is not None:
        xhat = (_wide(x) - _channel(norm.mean, x)) * _channel(_invstd(norm), x)
        sum_gx.copy_((g * xhat).sum(_others(g)))


def backward_apply(grad, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, grad2=None):
    g = _masked(grad, out if saves_output(activation) else None, grad2)
    if grad_residual is not None:
        grad_residual.copy_(g)
    if grad_x is None:
        return
    invstd = _channel(_invstd(norm), g)
    scale = invstd if norm.weight is None else invstd * _channel(norm.weight, g)
    if not norm.of_batch:
        grad_x.copy_(_wide(g) * scale)
        return
    count = g.numel() // g.shape[1]
    xhat = (_wide(x) - _channel(norm.mean, x)) * invstd
    grad_x.copy_(scale * (_wide(g) - _channel(sum_g, g) / count - xhat * _channel(sum_gx, g) / count))


def differentiable_backward(grad, x, out, mean, var_or_invstd, weight, eps, batch_stats):
    """(grad_x, grad_weight, grad_bias, grad_residual) as a differentiable function of grad, x and weight."""
    g = _masked(grad, out)
    if batch_stats:  # autograd sees `mean` and `var_or_invstd` as constants, but both depend on x: compute them from x
        var_or_invstd, mean = torch.var_mean(_wide(x), _others(x), correction=0)
    invstd = torch.rsqrt(_wide(var_or_invstd) + eps)
    xhat = (_wide(x) - _channel(mean, x)) * _channel(invstd, x)
    sum_g, sum_gx = _wide(g).sum(_others(g)), (_wide(g) * xhat).sum(_others(g))
    scale = _channel(invstd if weight is None else invstd * _wide(weight), x)
    grad_x = _wide(g)
    if batch_stats:
        count = g.numel() // g.shape[1]
        grad_x = grad_x - _channel(sum_g, g) / count - xhat * _channel(sum_gx, g) / count
    return (scale * grad_x).to(x.dtype), sum_gx, sum_g, g


CONVOLUTIONS = ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool", "conv_stats")
PASSES = {
    "add_relu": add_relu,
    "add_relu_backward": add_relu_backward,
    "bn_stats": stats,
    "bn_stats_merge": merge_stats,
    "bn_relu": apply,
    "bn_add_bn_relu": apply_two,
    "bn_relu_backward_reduce": backward_reduce,
    "bn_relu_backward_apply": backward_apply,
}
# Neither backend has a kernel for a convolution: each op composes it.
TORCH = Backend(
    "torch", ANY, lambda device: None, dict.fromkeys((*CONVOLUTIONS, "conv_input_grad", "conv_weight_grad"))
)
EAGER = Backend(
    "eager",
    ANY,
    lambda device: None,
    PASSES | dict.fromkeys((*CONVOLUTIONS, "conv_fp8", "quantise_fp8")),
    otherwise="eager",
)
