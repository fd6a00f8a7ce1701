"""Batch statistics over several processes, as nn.SyncBatchNorm: (mean, M2, count) per channel in one small collective.

The statistics kernels write directly into the message, with the unbiased variance M2 / (count - 1) in the place of M2.
One launch merges the messages of all processes. Batches may differ in size and may be empty. No value returns to the
host, and every process merges the same numbers in the same order.
"""

import torch
import torch.distributed as dist


def _group(name):
    return dist.distributed_c10d._resolve_process_group(name)


def name_of(bn):
    """The name of the group whose statistics `bn` shares, or "" where nothing is shared."""
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    group = getattr(bn, "process_group", None) or dist.group.WORLD
    return group.group_name if dist.get_world_size(group) > 1 else ""


def empty_part(like):
    """The message of this process: means [C], unbiased variances [C], number of values per channel; zeros for now."""
    return like.new_zeros(2 * like.shape[1] + 1)


def moments(part):
    """(means, variances) of a part: the statistics kernels write there."""
    channels = part.shape[0] // 2
    return part[:channels], part[channels:-1]


def gather(part, count, group):
    """The parts [world, 2 C + 1] of all processes. count: of this process."""
    part[-1:].fill_(count)
    process_group = _group(group)
    parts = part.new_empty((dist.get_world_size(process_group), part.shape[0]))
    # gloo compares the part with a row of parts, hence part[None]
    dist.all_gather_into_tensor(parts, part[None], group=process_group)
    return parts


def sums(sum_g, sum_gx, share, group):
    """The sums over all processes. They are scaled for a kernel that divides by this process's number of values."""
    both = torch.stack([sum_g, sum_gx])
    dist.all_reduce(both, group=_group(group))
    both *= share
    return both[0], both[1]
