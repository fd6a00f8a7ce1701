"""The process that runs the kernels: `python -m resnet_fused.measure.trust.child`, with a request on its stdin.

The request is a JSON object: `device`; `families`, a list of Families (families.py); `seconds`, the longest that a
family may take. The process writes two lines of JSON to stdout for each family: {"begins": i} before it, and after it
{"ends": i, "calls": number, "why": null or why it must not be used}, with "ran": false where `why` says nothing of the
family. A launcher's exception ends the process after its line, because one CUDA error spoils every later call. The
parent then starts another process for what is left.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import sys

import torch

from ...kernels.backend import Backend
from ...kernels.table import BACKENDS
from . import compare
from .families import Family


def backend_of(family):
    """The backend of a Family: in the table, or the constant of its module that is a backend of this name."""
    if not family.module:
        return BACKENDS[family.backend]
    for value in vars(importlib.import_module(family.module)).values():
        if isinstance(value, Backend) and value.name == family.backend:
            return value
    raise LookupError(f"{family.module} has no backend {family.backend!r}")


def main():
    request = json.loads(sys.stdin.readline())
    device = torch.device(request["device"])
    # Libraries print. stdout is for lines of the protocol alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if device.type == "cuda":
        torch.cuda.set_device(device)

    def say(**line):
        print(json.dumps(line), file=answers, flush=True)

    families = [Family(*one) for one in request["families"]]
    for family in families:  # loads modules and libraries before the clock of the first family runs
        with contextlib.suppress(Exception):  # the family's own turn says it
            backend_of(family).why_not(device)
    for i, family in enumerate(families):
        say(begins=i)
        # Ends a process that hangs and whose parent is gone.
        faulthandler.dump_traceback_later(2 * request["seconds"], exit=True)
        try:
            backend = backend_of(family)
            calls, why = 0, backend.why_not(device)
            if why is None:
                calls, why = compare.why_wrong(backend, family.name, device)
        except torch.OutOfMemoryError:  # others use the device; this says nothing of the family
            say(ends=i, calls=0, why="no memory left on the device for the check", ran=False)
            return
        except Exception as error:  # whatever a launcher raises is what is to be known of its family
            say(ends=i, calls=0, why=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            return
        say(ends=i, calls=calls, why=why)


if __name__ == "__main__":
    main()
