"""Backends that stand for GPUs on which something is wrong: the emulator, with some of its kernels broken.

The process that checks kernels imports this module, because each backend names it. A broken kernel breaks wherever it is
called, so that a test which survives has not called it.
"""

import os
import signal
import time

from emulator import as_backend

from resnet_fused.kernels.backend import Kernels

GPU = as_backend.BACKEND._replace(simulated=None, proves=True, module=__name__)


def wrong_number(*arguments):
    as_backend.BACKEND.kernels["bn_relu"](*arguments)
    arguments[-1][..., -1, -1] *= 1.05  # the last pixel


def launch_error(*arguments, **config):
    raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")


def aborts(*arguments, **config):
    os.abort()


def segfaults(*arguments):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(*arguments, **config):
    while True:
        time.sleep(1)


# op -> (kernel, what the refusal says)
BROKEN = {
    "bn_relu": (wrong_number, "wrong numbers: .* of the error budget"),
    "conv_bn_relu": (launch_error, "RuntimeError: CUDA error: unspecified launch failure"),
    "conv_stats": (aborts, "the process that checked it died: SIGABRT"),
    "bn_stats": (segfaults, "the process that checked it died: SIGSEGV"),
    "bn_relu_backward_reduce": (hangs, "no end within 10 s"),
}
RIGHT = ("add_relu", "add_relu_backward", "bn_add_bn_relu", "bn_relu_backward_apply")


def _find(op):
    return BROKEN[op][0] if op in BROKEN else as_backend.BACKEND.kernels[op]


BACKEND = GPU._replace(name="broken", kernels=Kernels((*BROKEN, *RIGHT), _find))
