"""Answers about tensors that are remembered: asking takes 25 us, for every pass of every block."""

import torch

from ..kernels.precision import tf32_allowed
from ..kernels.table import BACKENDS
from ..measure import remembered
from .asked import asked_for, configuration


def setting(device):
    """What besides the tensors decides a choice on a torch.device: equal settings, equal choices."""
    return asked_for(), configuration(), *BACKENDS.values(), remembered.table(device).entries


class Remembered:
    """Answers that were given about tensors, for each device and dtype as long as its `setting` stays what it was."""

    MOST = 4096  # answers for a device and a dtype

    def __init__(self):
        self.found = {}  # (device, dtype) -> (setting, {question: answer})

    def answers(self, device, dtype):
        """The dictionary {question: answer} of the present setting, to read and to add to."""
        now = setting(device), tf32_allowed() if dtype is torch.float32 else None
        before, answers = self.found.get((device, dtype), (None, ()))
        if now != before or len(answers) > self.MOST:
            answers = {}
            self.found[device, dtype] = now, answers
        return answers
