"""A run of residual blocks as one op.

    y = relu(bn_n(conv_n(... relu(bn_1(conv_1(x))) ...)) + shortcut(x))             block after block

The op keeps for the backward: x, the outputs z of the convolutions, and the output y of every block, which is the mask
of the block's last ReLU and the next block's x. With `recompute` (memory_efficient) the op keeps neither the y inside a
run nor the outputs of projections: the backward computes them again, in the order of the forward.

The gradient of a block's input has two summands, one from its first convolution and one from its shortcut. Inside a run
the summands stay apart: the first pass of the previous block that reads them adds them in float32.
"""

from typing import NamedTuple

import torch

from ...kernels import layout
from ..convolution import plain
from ..define import call, define
from . import autograd, encoding, one_call
from .unit import (
    all_empty_stats,
    conv_backward,
    convolve,
    empty_output,
    empty_stats,
    end_of_block,
    norm_backward,
    normalise,
)


def _dense(x):
    return layout.in_format(x, layout.nearest_format(x))


def _forward(x, block, empty):
    """(y, [(z, statistics) of every unit]). `empty`: an iterator over the units' empty statistics."""
    saved, h = [], x
    for i, unit in enumerate(block.units):
        z, stats = convolve(h, unit, next(empty))
        saved.append((z, stats))
        if i < len(block.units) - 1:
            h = normalise(z, unit, stats)
    if block.projection is None:
        return end_of_block(z, unit, stats, x), saved
    saved.append(convolve(_beside(z, x), block.projection, next(empty)))
    return end_of_block(z, unit, stats, saved[-1][0], block.projection, saved[-1][1]), saved


def _beside(z, x):
    """x in a layout from which a projection gives z's layout. A 1x1 weight does not tell its layout, unlike a 3x3
    weight."""
    return layout.in_format(x, layout.CHANNELS_LAST) if layout.nearest_format(z) is layout.CHANNELS_LAST else x


def _again(x, block, saved):
    """Computes y again, from the saved outputs of the convolutions."""
    z, stats = saved[len(block.units) - 1]
    if block.projection is None:
        return end_of_block(z, block.units[-1], stats, x)
    return end_of_block(z, block.units[-1], stats, saved[-1][0], block.projection, saved[-1][1])


def _run(x, tensors, numbers, eps, groups, recompute):
    if not recompute and (found := one_call.forward(x, tensors, numbers, eps, groups)) is not None:
        return found
    blocks, saved, between, h = encoding.decode(tensors, numbers, eps, groups), [], [], _dense(x)
    empty = all_empty_stats(x, [unit for block in blocks for unit in block.all_units()])
    for block in blocks:
        h, of_block = _forward(h, block, empty)
        for u, (z, stats) in enumerate(of_block):
            saved += [z.new_empty(0) if recompute and u >= len(block.units) else z, stats]
        between.append(h)
    return [h, *saved, *([] if recompute else between[:-1])]


def _fake(x, tensors, numbers, eps, groups, recompute):
    blocks, saved, between, h = encoding.decode(tensors, numbers, eps, groups), [], [], x
    for block in blocks:
        first = h
        for unit in block.units:
            h = empty_output(h, unit)
            saved += [h, empty_stats(h, unit)]
        if block.projection is not None:
            z = empty_output(_beside(h, first), block.projection)
            saved += [z.new_empty(0) if recompute else z, empty_stats(z, block.projection)]
        between.append(torch.empty_like(h))
    return [between[-1], *saved, *([] if recompute else between[:-1])]


define(
    "residual_blocks(Tensor x, Tensor[] tensors, int[] numbers, float[] eps, str groups, bool recompute) -> Tensor[]",
    _run,
    _fake,
)


def _pairs(blocks, saved):
    saved = iter(saved)
    return [[(next(saved), next(saved)) for _ in block.all_units()] for block in blocks]


def _run_backward(grad, x, y, tensors, saved, numbers, eps, groups, recompute, want_x, wanted):
    arguments = grad, x, y, tensors, saved, numbers, eps, groups, want_x, wanted
    if not recompute and (found := one_call.backward(*arguments)) is not None:
        return found
    blocks, grads = encoding.decode(tensors, numbers, eps, groups), {}
    flags = encoding.decode(wanted, numbers, eps, groups)
    pairs = _pairs(blocks, saved)
    inputs = [_dense(x)]
    if y is not None:
        outs = [*saved[2 * len(eps) :], y]
        inputs += outs[:-1]
    else:
        for block, of_block in zip(blocks, pairs, strict=True):
            if block.projection is not None:
                x_beside = _beside(of_block[len(block.units) - 1][0], inputs[-1])
                of_block[-1] = (_convolved_again(x_beside, block.projection), of_block[-1][1])
            inputs.append(_again(inputs[-1], block, of_block))
        outs = inputs[1:]
        inputs.pop()
    grad2 = None
    for b in reversed(range(len(blocks))):
        # Saved maps are popped, so that a map is freed after its last use.
        want = want_x or any(_wants(unit) for flag in flags[:b] for unit in flag.all_units())
        out = outs.pop()
        # Autograd may hand over any layout, and a convolution's gradient may have the other layout.
        grad, grad2 = (layout.in_format(g, layout.nearest_format(out)) for g in (grad, grad2))
        found, grad, grad2 = _backward(grad, grad2, inputs.pop(), out, blocks[b], pairs.pop(), flags[b], want)
        grads |= {(b, *key): g for key, g in found.items()}
        if not want:
            break
    # No pass reads the two summands of grad_x after this line, so torch adds them in float32 and rounds once.
    grad_x = layout.as_result_of(grad.add_(grad2), x) if want_x else x.new_empty(0)
    return [grad_x, *encoding.gradients(blocks, grads, flags)]


def _convolved_again(x, unit):
    x = layout.in_format(x, layout.nearest_format(x))
    z = plain.convolve(x, unit.weight, *unit.convolution, unit.groups)
    return layout.in_format(z, layout.nearest_format(empty_output(x, unit)))


def _wants(flag):
    return bool(flag.weight or flag.bn_weight or flag.bn_bias)


def _backward(grad, grad2, x, y, block, saved, flags, want_x):
    """({(unit, name): gradient}, the two summands of the gradient of x). grad2: None, or a second summand of the
    gradient of y, whose memory is reused."""
    grads, units = {}, block.units
    last = len(units) - 1

    def norm(u, unit, flag, grad, out, want_z, want_masked=False, grad2=None):
        affine = flag.bn_weight or flag.bn_bias
        z, stats = saved[u]
        grad_z, grads[u, "bn_weight"], grads[u, "bn_bias"], masked = norm_backward(
            grad, None if z.dim() == 1 else z, out, unit, stats, want_z, affine, want_masked, grad2
        )
        return grad_z, masked

    # Whether each unit must hand on a gradient: its own parameters or earlier ones want one.
    before = [want_x]
    for flag in flags.units:
        before.append(before[-1] or _wants(flag))
    want_z = [before[u] or bool(flags.units[u].weight) for u in range(last + 1)]
    projects = block.projection is not None and (want_x or _wants(flags.projection))
    want_masked = projects if block.projection is not None else want_x
    grad_z, shortcut = norm(last, units[last], flags.units[last], grad, y, want_z[last], want_masked, grad2)
    if projects:
        flag = flags.projection
        grad_p, _ = norm(last + 1, block.projection, flag, shortcut, None, want_x or flag.weight)
        shortcut, grads[last + 1, "weight"] = conv_backward(grad_p, x, block.projection, want_x, flag.weight)
    for u in range(last, -1, -1):
        flag = flags.units[u]
        h = x
        if u and (want_z[u] or before[u]):
            h = normalise(saved[u - 1][0], units[u - 1], saved[u - 1][1])
        if not want_z[u]:
            break
        grad_h, grads[u, "weight"] = conv_backward(grad_z, h, units[u], before[u], flag.weight)
        if u and before[u]:
            # 1x1 weights after 3x3 weights may have another layout
            grad_h = layout.in_format(grad_h, layout.nearest_format(h))
            grad_z, _ = norm(u - 1, units[u - 1], flags.units[u - 1], grad_h, h, want_z[u - 1])
        elif u:
            break
    return grads, grad_h if want_x else None, shortcut if want_x else None


def _fake_backward(grad, x, y, tensors, saved, numbers, eps, groups, recompute, want_x, wanted):
    return [
        torch.empty_like(x) if want_x else x.new_empty(0),
        *(torch.empty_like(t) if want else t.new_empty(0) for t, want in zip(tensors, wanted, strict=True)),
    ]


define(
    "residual_blocks_backward(Tensor grad, Tensor x, Tensor? y, Tensor[] tensors, Tensor[] saved, int[] numbers, float[] eps,"
    " str groups, bool recompute, bool want_x, bool[] wanted) -> Tensor[]",
    _run_backward,
    _fake_backward,
)


class _Call(NamedTuple):
    """The op with its constant arguments: see `autograd.run`."""

    numbers: list
    eps: list
    groups: str
    recompute: bool

    def forward(self, x, tensors):
        return call(torch.ops.resnet_fused.residual_blocks, _run, x, tensors, *self)

    def statistics(self, output):
        return output[2 : 2 * len(self.eps) + 1 : 2]

    def blocks(self, tensors):
        return encoding.decode(tensors, self.numbers, self.eps, self.groups)

    def kept(self, output, tensors, needs):
        y, *saved = output
        if self.recompute:
            return [None, *saved]
        if not encoding.any_frozen(self.numbers):
            return output
        # A batch norm with frozen statistics at the end of a block, whose weight wants no gradient, does not read its z
        # again.
        blocks, flags, kept = self.blocks(tensors), self.blocks(needs), [y]
        for block, flag, pairs in zip(blocks, flags, _pairs(blocks, saved), strict=True):
            ends = len(block.units) - 1
            for u, (unit, want, (z, stats)) in enumerate(zip(block.all_units(), flag.all_units(), pairs, strict=True)):
                unread = u >= ends and unit.mean is not None and not want.bn_weight
                kept += [z.new_empty(0) if unread else z, stats]
        return kept + saved[2 * len(self.eps) :]

    def backward(self, grad, x, tensors, kept, want_x, wanted):
        y, *saved = kept
        op = torch.ops.resnet_fused.residual_blocks_backward
        return call(op, _run_backward, grad, x, y, tensors, saved, *self, want_x, wanted)

    def reference(self, x, tensors):
        return encoding.reference(x, self.blocks(tensors))


autograd.register("residual_blocks", _Call)


def residual_blocks(x, blocks, finish, recompute=False):
    """The output of residual blocks in training.

    Args:
        x: [N, C, H, W]; float32, float16, bfloat16, the dtype of the convolutions' weights.
        blocks: a list of `Block`.
        finish: is called with the float32 statistics of every unit of every block, as `unit.empty_stats` says, to update
            running statistics.
        recompute: keep less for the backward (see above) and compute it again.

    Raises:
        RuntimeError: shapes that torch's convolution would refuse; in the double backward of shared statistics.
    """
    tensors, *constants = encoding.encode(blocks)
    return autograd.run(_Call(*constants, recompute), finish, x, tensors)


def relu_outputs(output, x, tensors, numbers, eps, groups, recompute):
    """What every ReLU of a forward pass returned, in order; arguments: the op's output, then its own."""
    blocks = encoding.decode(tensors, numbers, eps, groups)
    for block, pairs in zip(blocks, _pairs(blocks, output[1:]), strict=True):
        for unit, (z, stats) in zip(block.units[:-1], pairs, strict=False):
            yield normalise(z, unit, stats)
        if block.projection is not None and recompute:
            x_beside = _beside(pairs[len(block.units) - 1][0], x)
            pairs[-1] = (_convolved_again(x_beside, block.projection), pairs[-1][1])
        x = _again(_dense(x), block, pairs)
        yield x
