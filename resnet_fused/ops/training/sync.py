"""Batch statistics over several processes, as nn.SyncBatchNorm: (mean, M2, count) per channel in one small collective.

Processes may have batches of different sizes, empty ones included. Nothing returns to the host, and every process merges the
same numbers in the same order, in float64: the vectors are tiny.
"""

import torch
import torch.distributed as dist

MEAN, INVSTD, VAR, _, COUNT = range(5)


def _group(name):
    return dist.distributed_c10d._resolve_process_group(name)


def name_of(bn):
    """The group whose statistics `bn` shares, by name; "" where nothing is to be shared."""
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    group = getattr(bn, "process_group", None) or dist.group.WORLD
    return group.group_name if dist.get_world_size(group) > 1 else ""


def merge(stats, count, eps, group):
    """The statistics [5, C] of this process and its number of values per channel -> those of all processes."""
    channels = stats.shape[1]
    mine = stats.new_zeros(2 * channels + 1)
    if count > 0:
        mine[:channels] = stats[MEAN]
        if count > 1:  # VAR is M2 / (count - 1)
            torch.mul(stats[VAR], count - 1, out=mine[channels:-1])
        mine[-1:].fill_(count)
    process_group = _group(group)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, mine, group=process_group)
    parts = torch.stack(parts).double()
    means, m2, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    m2 = (m2 + counts * (means - mean).square()).sum(0)
    merged = torch.empty_like(stats)
    merged[MEAN] = mean
    merged[INVSTD] = (m2 / total + eps).rsqrt()
    merged[VAR] = m2 / (total - 1)
    merged[3] = mean
    merged[COUNT] = total.expand(channels)
    return merged


def sums(sum_g, sum_gx, stats, count, group):
    """The sums over all processes, scaled so that a kernel which divides by this process's `count` is right."""
    both = torch.stack([sum_g, sum_gx])
    dist.all_reduce(both, group=_group(group))
    both *= count / stats[COUNT]
    return both[0], both[1]
