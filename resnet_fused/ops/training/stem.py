"""The stem as one op: max_pool2d(relu(bn(conv(x)))), or without a pool relu(bn(conv(x))).

The op keeps for the backward: x, the output z of the convolution, and the output and indices of the pool. It does not
keep the map between them, the largest of the network. The gradient reaches only the positions that the pool chose. At
these positions the ReLU's output is the pool's output, whose sign is the mask. With `recompute` (memory_efficient) the
op does not keep the indices either.
"""

from typing import NamedTuple

import torch

from ...kernels import layout
from ..define import call, define
from . import autograd, encoding
from .unit import Block, conv_backward, convolve, empty_output, empty_stats, norm_backward, normalise


def _pool(h, pool):
    return torch.ops.aten.max_pool2d_with_indices(h, pool[:2], pool[2:4], pool[4:6], pool[6:8], bool(pool[8]))


def _unit(tensors, numbers, eps, group):
    return encoding.decode(tensors, numbers, eps, group)[0].units[0]


def _run(x, tensors, numbers, eps, group, pool, recompute):
    unit = _unit(tensors, numbers, eps, group)
    z, stats = convolve(layout.in_format(x, layout.nearest_format(x)), unit)
    h = normalise(z, unit, stats)
    if not pool:
        return h, z, stats, z.new_empty(0, dtype=torch.int64)
    pooled, indices = _pool(h, pool)
    return pooled, z, stats, indices.new_empty(0) if recompute else indices


def _fake(x, tensors, numbers, eps, group, pool, recompute):
    unit = _unit(tensors, numbers, eps, group)
    z = empty_output(x, unit)
    if not pool:
        return torch.empty_like(z), z, empty_stats(z, unit), z.new_empty(0, dtype=torch.int64)
    pooled, indices = _pool(torch.empty_like(z), pool)
    return pooled, z, empty_stats(z, unit), indices.new_empty(0) if recompute else indices


define(
    "stem(Tensor x, Tensor[] tensors, int[] numbers, float[] eps, str group, int[] pool, bool recompute)"
    " -> (Tensor pooled, Tensor z, Tensor statistics, Tensor indices)",
    _run,
    _fake,
)


def _run_backward(grad, x, pooled, z, stats, indices, tensors, numbers, eps, group, pool, want_x, wanted):
    unit = _unit(tensors, numbers, eps, group)
    flag = _unit(wanted, numbers, eps, group)
    memory_format = layout.nearest_format(z)
    grad, pooled = layout.in_format(grad, memory_format), layout.in_format(pooled, memory_format)
    if pool:
        grad, pooled = _unpooled(grad, pooled, z, unit, stats, indices, pool), None
    want_z = want_x or flag.weight
    grads = {}
    grad_z, grads[0, 0, "bn_weight"], grads[0, 0, "bn_bias"], _ = norm_backward(
        grad, z, pooled, unit, stats, want_z, flag.bn_weight or flag.bn_bias
    )
    grad_x, grads[0, 0, "weight"] = conv_backward(grad_z, x, unit, want_x, flag.weight)
    grad_x = layout.as_result_of(grad_x, x) if want_x else x.new_empty(0)
    return [grad_x, *encoding.gradients([Block([unit], None)], grads, [Block([flag], None)])]


def _unpooled(grad, pooled, z, unit, stats, indices, pool):
    """The gradient before the ReLU."""
    if indices.dim() == 1:
        indices = _pool(normalise(z, unit, stats), pool)[1]
    masked = torch.ops.aten.threshold_backward(grad, pooled, 0)
    # z stands for the input of the pool. torch's backward reads only its shape.
    grad = torch.ops.aten.max_pool2d_with_indices_backward(
        masked, z, pool[:2], pool[2:4], pool[4:6], pool[6:8], bool(pool[8]), indices
    )
    return layout.in_format(grad, layout.nearest_format(z))


def _fake_backward(grad, x, pooled, z, stats, indices, tensors, numbers, eps, group, pool, want_x, wanted):
    return [
        torch.empty_like(x) if want_x else x.new_empty(0),
        *(torch.empty_like(t) if want else t.new_empty(0) for t, want in zip(tensors, wanted, strict=True)),
    ]


define(
    "stem_backward(Tensor grad, Tensor x, Tensor pooled, Tensor z, Tensor statistics, Tensor indices, Tensor[] tensors,"
    " int[] numbers, float[] eps, str group, int[] pool, bool want_x, bool[] wanted) -> Tensor[]",
    _run_backward,
    _fake_backward,
)


class _Call(NamedTuple):
    """The op with its constant arguments: see `autograd.run`."""

    numbers: list
    eps: list
    groups: str
    pool: list
    recompute: bool

    def forward(self, x, tensors):
        return call(torch.ops.resnet_fused.stem, _run, x, tensors, *self)

    def statistics(self, output):
        return [output[2]]

    def kept(self, output, tensors, needs):
        return output

    def backward(self, grad, x, tensors, kept, want_x, wanted):
        op = torch.ops.resnet_fused.stem_backward
        return call(op, _run_backward, grad, x, *kept, tensors, *self[:4], want_x, wanted)

    def reference(self, x, tensors):
        unit = _unit(tensors, self.numbers, self.eps, self.groups)
        h = torch.relu(encoding.reference_unit(x, unit))
        return _pool(h, self.pool)[0] if self.pool else h


autograd.register("stem", _Call)


def stem(x, unit, pool, finish, recompute=False):
    """The output of the stem in training.

    Args:
        x: [N, C, H, W]; float32, float16, bfloat16, the dtype of the convolution's weight.
        unit: a `Unit`.
        pool: kernel, stride, padding, dilation (pairs, as eight ints) and ceil_mode of the max-pool; empty: no pool.
        finish: is called with [float32 statistics of the unit] to update running statistics.
        recompute: keep less for the backward (see above) and compute it again.

    Raises:
        RuntimeError: shapes that torch would refuse; in the double backward of shared statistics.
    """
    tensors, *constants = encoding.encode([Block([unit], None)])
    return autograd.run(_Call(*constants, pool, recompute), finish, x, tensors)


def relu_output(output, x, tensors, numbers, eps, group, *_):
    """What the ReLU of a forward pass returned; arguments: the op's output, then its own."""
    return normalise(output[1], _unit(tensors, numbers, eps, group), output[2])
