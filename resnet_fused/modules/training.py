"""Between modules and the training ops: when blocks take them, in which modes, and batch norm's bookkeeping.

A block takes this path if a batch norm in it uses the statistics of the batch or a gradient is wanted. Blocks that the ops
do not take (by their dtypes, shapes or eps) run one convolution at a time, and torch accepts or refuses each in its own words.
"""

import contextlib

import torch
from torch import nn

from .. import dispatch
from ..kernels import layout
from ..kernels.shapes import out_shape
from ..ops import training
from ..ops.define import cannot_be_saved
from ..ops.training.sync import name_of
from .eligible import is_projection, is_sequence, watched
from .norms import is_frozen, tensors_of
from .running import update


def _uses_batch(bn):
    batch = bn.training or (bn.running_mean is None and bn.running_var is None)
    return batch and (type(bn) is nn.BatchNorm2d or not is_frozen(bn))


def syncs(pairs):
    """Whether a batch norm among `pairs` [(conv, bn)] shares its statistics with other processes right now."""
    return any(type(bn) is nn.SyncBatchNorm and bn.training and name_of(bn) for _, bn in pairs)


_state = {"apart": False}


@contextlib.contextmanager
def one_op_at_a_time():
    """Context manager: a block in it runs one convolution and one batch norm at a time, and each pass asks the dispatcher.

    Tuning watches these passes: inside the op of a whole block the same passes run on the same tensors.
    """
    before, _state["apart"] = _state["apart"], True
    try:
        yield
    finally:
        _state["apart"] = before


def trains(x, pairs):
    """Whether modules `pairs` [(conv, bn)] on input x need the training ops."""
    if _state["apart"]:
        return False
    return any(_uses_batch(bn) for _, bn in pairs) or (torch.is_grad_enabled() and _learns(x, pairs))


def _learns(x, pairs):
    return x.requires_grad or any(
        p is not None and p.requires_grad for conv, bn in pairs for p in (conv.weight, bn.weight, bn.bias)
    )


def route(x, chains):
    """How blocks [([(conv, bn), ...], downsample), ...] that may be fused are run.

    "training": by the training ops. "modules": module by module, where only torch can synchronise. None: as in evaluation.
    downsample: None, a sequence of a convolution and its norm, (conv, bn), or any other module.
    """
    chains = _projections(chains)
    pairs = _pairs_of(chains)
    if not trains(x, pairs):
        return None
    ordinary = all(projection is None or type(projection) is tuple for _, projection in chains)
    frozen = any(type(bn) is not nn.BatchNorm2d and is_frozen(bn) for _, bn in pairs)
    if ordinary and not frozen and why_not(x, chains) is None:
        return "training"
    return "modules" if syncs(pairs) else None


def _pairs_of(chains):
    return [
        pair for main, projection in chains for pair in (*main, *([projection] if type(projection) is tuple else []))
    ]


def route_of_stem(x, conv, bn, maxpool):
    """As `route`, for the stem."""
    if not trains(x, [(conv, bn)]):
        return None
    if not is_frozen(bn) and why_not_stem(x, conv, bn, maxpool) is None:
        return "training"
    return "modules" if syncs([(conv, bn)]) else None


def _projections(chains):
    """The chains with (conv, bn) in place of a sequence of the two; any other shortcut stays as it is."""
    return [(main, tuple(down) if is_projection(down) else down) for main, down in chains]


def chains_of(x, layer, forward):
    """The chains of a layer's blocks if one op may run them all, else None.

    None also where nothing is kept for a backward, where a hook watches a block, and where a block is wrapped in another
    module or has another forward than `forward`.
    """
    if not torch.is_grad_enabled() or not is_sequence(layer) or watched(layer):
        return None
    blocks = list(layer)
    if any(type(block).__call__ is not nn.Module.__call__ for block in blocks):
        return None
    if any(type(block).forward is not forward or watched(block) or block.why_not_fused(x) for block in blocks):
        return None
    chains = [block._fused_chain() for block in blocks]
    # The op keeps what its backward may need of every block, also of leading blocks without anything to learn.
    if not chains or not _learns(x, _pairs_of(_projections(chains[:1]))):
        return None
    return chains if route(x, chains) == "training" else None


def _low(device):
    """The half type that autocast computes in on a type of device, or None without autocast."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _why_not_unit(conv, bn, x, dtype, low, channels):
    """Why the ops do not take a convolution and its norm, or None. Only a reason is formatted: this runs for every convolution
    on every step."""
    weight, groups, device = conv._parameters["weight"], conv.groups, x.device
    shape = weight.shape  # each of these attributes is a call
    bn_weight, bn_bias, mean, var = tensors_of(bn)
    if len(shape) != 4 or weight.device != device or (weight.dtype if low is None else low) != dtype:
        return f"a weight {weight.dtype} {tuple(shape)} on {weight.device} for an input {dtype} on {device}"
    if shape[1] * groups != channels or shape[0] % groups:
        return f"a weight of shape {tuple(shape)} with {groups} groups for {channels} channels"
    if bn.eps <= 0.0 and (bn.eps < 0.0 or _uses_batch(bn)):
        least = "positive" if _uses_batch(bn) else "not negative"
        return f"a batch norm with eps {bn.eps}, which has to be {least}"
    if (mean is None) != (var is None):
        return "a batch norm with one running statistic alone"
    count = shape[:1]
    for p in (bn_weight, bn_bias, mean, var):
        if p is not None and (p.shape != count or p.device != device or p.dtype not in (dtype, torch.float32)):
            return (
                f"a tensor of a batch norm {p.dtype} {tuple(p.shape)} on {p.device} for {shape[0]} channels of {dtype}"
            )
    return None


def _shape_after(conv, shape):
    return out_shape(shape, conv._parameters["weight"].shape, conv.stride, conv.padding, conv.dilation)


def why_not(x, chains):
    """Why the training ops do not take `chains` [([(conv, bn), ...], (conv, bn) or None)] on x, or None."""
    if cannot_be_saved(x):
        return "an inference tensor, which autograd cannot save"
    low = _low(x.device.type)
    dtype = low or x.dtype
    if dtype not in dispatch.DTYPES:
        return f"dtype {dtype}"
    norms = [id(bn) for main, projection in chains for _, bn in (*main, *([projection] if projection else []))]
    if len(set(norms)) < len(norms):
        return "a batch norm that is used twice"  # which must count and average its two batches one after the other
    shape = tuple(x.shape)
    for main, projection in chains:
        after = shape
        for conv, bn in main:
            if (reason := _why_not_unit(conv, bn, x, dtype, low, after[1])) is not None:
                return reason
            after = _shape_after(conv, after)
            if min(after[2:]) < 1:
                return f"a kernel larger than the map of shape {tuple(x.shape)}"
        shortcut = shape
        if projection is not None:
            if (reason := _why_not_unit(*projection, x, dtype, low, shape[1])) is not None:
                return reason
            shortcut = _shape_after(projection[0], shape)
        if shortcut != after:
            return f"a shortcut of shape {shortcut} beside {after}"
        shape = after
    return None


class _Pass:
    """One forward pass: `unit` and `block` check and make the op's arguments, `count` counts the batch, `finish` updates
    running statistics."""

    def __init__(self, x):
        self.low = _low(x.device.type)
        self.x = x if self.low is None else x.to(self.low)
        self.norms, self.counters = [], []

    def unit(self, conv, bn, shape):
        """The Unit of conv and bn on an input of `shape`, and the shape after it."""
        shape, training_now = _shape_after(conv, shape), bn.training
        if training_now and bn.track_running_stats and (counter := bn.num_batches_tracked) is not None:
            self.counters.append(counter)
        batch = _uses_batch(bn)
        group = name_of(bn) if type(bn) is nn.SyncBatchNorm and training_now else ""
        if batch and not group and shape[0] * shape[2] * shape[3] == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {torch.Size(shape)}"
            )
        weight, (bn_weight, bn_bias, mean, var) = conv._parameters["weight"], tensors_of(bn)
        if self.low is not None:
            weight = layout.lowered(weight, self.low, self.x)
        if batch:
            mean = var = None
        # An empty batch teaches nothing, unless other processes have more of it.
        self.norms.append(bn if training_now and (group or shape[0] > 0) else None)
        unit = training.Unit(
            weight, bn_weight, bn_bias, mean, var,
            list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups, bn.eps, group,
        )  # fmt: skip
        return unit, shape

    def block(self, main, projection, shape):
        units, after = [], shape
        for conv, bn in main:
            unit, after = self.unit(conv, bn, after)
            units.append(unit)
        return training.Block(units, None if projection is None else self.unit(*projection, shape)[0]), after

    def count(self):
        """Counts the batch in every batch norm that trains, after all of them were checked."""
        if self.counters:
            torch._foreach_add_(self.counters, 1)

    def finish(self, statistics):
        update(self.norms, statistics)


def residual(x, chains, recompute=False):
    """The output of the blocks `chains` on x, in their own modes; `route` has said "training"."""
    step, shape, blocks = _Pass(x), tuple(x.shape), []
    for main, projection in _projections(chains):
        block, shape = step.block(main, projection, shape)
        blocks.append(block)
    step.count()
    return training.residual_blocks(step.x, blocks, step.finish, recompute)


def stem(x, conv, bn, maxpool, recompute=False):
    """maxpool(relu(bn(conv(x)))), in the modules' own modes; `route_of_stem` has said "training"."""
    step = _Pass(x)
    unit, _ = step.unit(conv, bn, tuple(x.shape))
    step.count()
    pool = []
    if type(maxpool) is not nn.Identity:
        pairs = (_pair(maxpool.kernel_size), _pair(maxpool.stride), _pair(maxpool.padding), _pair(maxpool.dilation))
        pool = [*sum(pairs, ()), int(maxpool.ceil_mode)]
    return training.stem(step.x, unit, pool, step.finish, recompute)


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def why_not_stem(x, conv, bn, maxpool):
    """Why the stem's op does not take these modules on x, or None."""
    low = _low(x.device.type)
    dtype = low or x.dtype
    plain = type(maxpool) is nn.Identity or (type(maxpool) is nn.MaxPool2d and not maxpool.return_indices)
    if not plain or watched(maxpool):
        return "maxpool is not a plain nn.MaxPool2d or nn.Identity, or carries a hook"
    if dtype not in dispatch.DTYPES:
        return f"dtype {dtype}"
    if cannot_be_saved(x):
        return "an inference tensor, which autograd cannot save"
    if (reason := _why_not_unit(conv, bn, x, dtype, low, x.shape[1])) is not None:
        return reason
    least = 1 if type(maxpool) is nn.Identity else max(_pair(maxpool.kernel_size))
    if min(_shape_after(conv, tuple(x.shape))[2:]) < least:
        return f"a map smaller than the pool: input of shape {tuple(x.shape)}"
    return None
