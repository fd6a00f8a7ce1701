"""A convolution and its batch norm in training: the passes over memory of which blocks and the stem consist.

These are plain functions of tensors without autograd. The ops that call them have gradients.
"""

from typing import NamedTuple

import torch

from ... import dispatch
from ...kernels import layout
from ...kernels.epilogue import NONE, RELU, Epilogue, Norm
from ...kernels.shapes import convolution_of, out_shape
from ..bn_relu import apply, backward_apply, sums
from ..convolution import plain
from ..convolution.gradients import conv_gradients
from . import sync

# Rows of the statistics [4, C] of a unit, float32. VAR is unbiased, for the running statistics. SCRATCH is the kernels'
# running mean. SHARE exists over processes only: this process's number of values / the number of all.
MEAN, INVSTD, VAR, SCRATCH, SHARE = range(5)


class Unit(NamedTuple):
    """A convolution [K, C / groups, R, S] and its batch norm. `mean`, `var`: running statistics of a frozen batch norm.
    Where they are None, the statistics are those of the batch, over the processes of `group` (a name; empty: this
    process alone)."""

    weight: torch.Tensor
    bn_weight: torch.Tensor | None
    bn_bias: torch.Tensor | None
    mean: torch.Tensor | None
    var: torch.Tensor | None
    stride: list
    padding: list
    dilation: list
    groups: int
    eps: float
    group: str = ""

    @property
    def convolution(self):
        return self.stride, self.padding, self.dilation

    def norm(self, stats):
        """The Norm for the kernels."""
        if self.mean is None:
            return Norm(stats[MEAN], None, stats[INVSTD], self.bn_weight, self.bn_bias, None)
        return Norm(self.mean, self.var, None, self.bn_weight, self.bn_bias, self.eps)


class Block(NamedTuple):
    """Units one after the other; a ReLU follows each but the last. `projection`: the shortcut's unit; None: the
    shortcut is x."""

    units: list
    projection: Unit | None

    def all_units(self):
        return [*self.units, *([] if self.projection is None else [self.projection])]


def empty_output(x, unit):
    shape = out_shape(x.shape, unit.weight.shape, *unit.convolution)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.result_format(x, unit.weight))


def stats_shape(unit):
    rows = 0 if unit.mean is not None else 5 if unit.group else 4
    return (rows, unit.weight.shape[0]) if rows else (0,)


def empty_stats(x, unit):
    """Float32 zeros [4, C], [5, C] over processes, or [0]. They are zeros because the kernels blend them in with weight
    0."""
    return torch.zeros(stats_shape(unit), dtype=torch.float32, device=x.device)


def all_empty_stats(x, units):
    """An iterator over `empty_stats` of each unit, which one launch fills. An op returns them, so they share no memory."""
    found = [torch.empty(stats_shape(unit), dtype=torch.float32, device=x.device) for unit in units]
    if filled := [stats for stats in found if stats.numel()]:
        torch._foreach_zero_(filled)
    return iter(found)


def convolve(x, unit, stats=None):
    """(z, statistics of z): z [N, K, P, Q] as stored; the statistics are written to `stats`, else to `empty_stats`."""
    stats = empty_stats(x, unit) if stats is None else stats
    memory_format = layout.result_format(x, unit.weight)
    x, choice = layout.in_format(x, memory_format), None
    if unit.mean is None:
        part = sync.empty_part(stats) if unit.group else None
        mean, var = (stats[MEAN], stats[VAR]) if part is None else sync.moments(part)
        convolution = convolution_of(x, unit.weight, *unit.convolution, unit.groups)
        choice = dispatch.choose_conv_stats(x, unit.weight, convolution)
        kernel = dispatch.kernel(choice, "conv_stats")
        if kernel is not None:
            z = empty_output(x, unit)
            kernel(
                x, unit.weight, z, mean, stats[INVSTD], stats[SCRATCH], var, None, convolution, 1.0, unit.eps
            )  # fmt: skip
            return z, _over_processes(z, unit, stats, part)
    z = plain.convolve(x, unit.weight, *unit.convolution, unit.groups, choice)
    z = layout.in_format(z, memory_format)
    if unit.mean is None:
        if z.numel() > 0:
            choice = dispatch.choose("bn_stats", z)
            run = dispatch.kernel(choice, "bn_stats")
            run(z, mean, stats[INVSTD], stats[SCRATCH], var, None, 1.0, unit.eps)
        stats = _over_processes(z, unit, stats, part)
    return z, stats


def _over_processes(z, unit, stats, part):
    if part is None:
        return stats
    count = z.numel() // z.shape[1]
    parts = sync.gather(part, count, unit.group)
    choice = dispatch.choose("bn_stats_merge", parts)
    run = dispatch.kernel(choice, "bn_stats_merge")
    run(parts, stats[MEAN], stats[INVSTD], stats[VAR], stats[SHARE], float(count), unit.eps)
    return stats


def normalise(z, unit, stats):
    """relu(bn(z)), a new tensor. The backward calls it again: same arguments, same kernel, same bits."""
    return apply(z, Epilogue(unit.norm(stats)), torch.empty_like(z))


def end_of_block(z, unit, stats, shortcut, projection=None, projection_stats=None):
    """relu(bn(z) + shortcut), or relu(bn(z) + bn_projection(shortcut)) in the same pass."""
    out = torch.empty_like(z)
    shortcut = layout.in_format(shortcut, layout.nearest_format(z))
    if projection is None:
        return apply(z, Epilogue(unit.norm(stats), shortcut), out)
    return add_two(z, unit.norm(stats), shortcut, projection.norm(projection_stats), out)


def add_two(z, norm, shortcut, norm_shortcut, out):
    """Writes relu(bn(z) + bn(shortcut)) into out and returns out. Norms are those of `Unit.norm`."""
    choice = dispatch.choose("bn_add_bn_relu", z, shortcut)
    dispatch.kernel(choice, "bn_add_bn_relu")(z, norm, shortcut, norm_shortcut, out)
    return out


def norm_backward(grad, z, out, unit, stats, want_z, want_affine, want_masked=False, grad2=None):
    """(grad_z, grad_bn_weight, grad_bn_bias, masked gradient g) of relu(bn(z) + ...), None where not wanted.

    out: the output of the ReLU, whose sign is the mask; None: no ReLU. z: None where a frozen weight wants no gradient.
    grad2: a second summand of grad, whose memory is reused. One pass computes the sums, a second pass the rest. Where g
    is wanted, or is the sum of two, the first pass writes g: later passes then read one map instead of two or three.
    """
    norm = unit.norm(stats)
    grad_weight = grad_bias = sum_g = sum_gx = None
    masked = torch.empty_like(grad) if want_masked and grad2 is None else grad2
    to_write = masked if want_masked else None
    activation = NONE if out is None else RELU
    if want_affine or (norm.of_batch and want_z):
        sum_g, sum_gx = sums(grad, z, out, norm, activation, grad2, masked)
        grad_weight, grad_bias = sum_gx, sum_g
        if norm.of_batch and unit.group:
            sum_g, sum_gx = sync.sums(sum_g, sum_gx, stats[SHARE], unit.group)
        if masked is not None:
            grad, grad2, out, to_write, activation = masked, None, None, None, NONE
    grad_z = torch.empty_like(grad) if want_z else None
    if want_z or to_write is not None:
        backward_apply(grad, z, out, norm, sum_g, sum_gx, grad_z, to_write, activation, grad2)
    return grad_z, grad_weight, grad_bias, masked if want_masked else None


def conv_backward(grad_z, x, unit, want_x, want_weight):
    """(grad_x, grad_weight), None where not wanted. The gradient of the weight has the weight's strides."""
    if not (want_x or want_weight):
        return None, None
    x = layout.in_format(x, layout.result_format(x, unit.weight))
    return conv_gradients(grad_z, x, unit.weight, *unit.convolution, unit.groups, want_x, want_weight)
