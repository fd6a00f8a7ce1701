"""The running statistics of batch norms after a training step."""

import torch

from ..ops.training.unit import MEAN, VAR
from .norms import tensors_of


@torch.no_grad()
def update(norms, statistics):
    """running = (1 - factor) * running + factor * batch, in float32, without asking the device anything.

    norms: batch norms; None where the running statistics stay. statistics: of each, as `ops.training.unit.empty_stats` says.
    """
    together = {}
    for bn, stats in zip(norms, statistics, strict=True):
        if bn is None or not bn.track_running_stats:
            continue
        *_, mean, var = tensors_of(bn)
        if mean is None:
            continue
        if bn.momentum is not None and (dtype := mean.dtype) == var.dtype:
            running, batch = together.setdefault((bn.momentum, dtype), ([], []))
            running += (mean, var)
            batch += (stats[MEAN], stats[VAR])
        else:
            _update_alone(bn, stats)
    for (momentum, dtype), (running, batch) in together.items():  # one launch for all of them, or three
        if dtype == torch.float32:
            torch._foreach_lerp_(running, batch, momentum)
            continue
        sizes = [b.numel() for b in batch]
        wide = batch[0].new_empty(sum(sizes)).split(sizes)
        torch._foreach_copy_(wide, running)
        torch._foreach_lerp_(wide, batch, momentum)
        torch._foreach_copy_(running, wide)


def _update_alone(bn, stats):
    factor = bn.momentum
    if factor is None:
        if bn.num_batches_tracked is None:
            return  # torch's factor is then 0
        factor = bn.num_batches_tracked.float().reciprocal()
    for running, batch in ((bn.running_mean, stats[MEAN]), (bn.running_var, stats[VAR])):
        running.copy_(torch.lerp(running.float(), batch, factor))
