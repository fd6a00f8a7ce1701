"""The process group of a run, which it leaves in a way that cannot hang."""

import contextlib

import torch.distributed as dist

# Never emptied. ProcessGroupGloo's destructor joins its threads with the GIL held, and one of them may still need the
# GIL to drop the last collective (pytorch/pytorch#56297): a deadlock in about 1 of 50 one-process runs of DDP. With a
# reference kept, destroy_process_group() only forgets the group; its idle threads end with the process.
_left = []


@contextlib.contextmanager
def process_group(backend, **options):
    """`torch.distributed` initialised inside, as `init_process_group(backend, **options)` does it, and not after."""
    dist.init_process_group(backend, **options)
    _left.append(dist.group.WORLD)
    try:
        yield
    finally:
        dist.destroy_process_group()
