"""Batch norm in evaluation folded into its convolution: bn(conv(x, w)) = conv(x, w * scale) + shift."""

import torch


def fold(conv, bn):
    """(weight, bias) in float32: weight [K, C / groups, R, S], bias [K]. They are folded in float64 and rounded
    once. `bn`: None where no norm follows; the bias is then the convolution's, or 0."""
    if bn is None:
        bias = torch.zeros(conv.out_channels, device=conv.weight.device) if conv.bias is None else conv.bias.detach()
        return conv.weight.detach().float().clone(), bias.float().clone()  # an engine is a snapshot
    var = bn.running_var.detach().double()
    scale = torch.rsqrt(var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.detach().double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    weight = conv.weight.detach().double() * scale.view(-1, 1, 1, 1)
    return weight.float(), shift.float()
