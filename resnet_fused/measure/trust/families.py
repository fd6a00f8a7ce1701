"""The families of kernels that are checked, and trusted or refused, one by one: the ops of each backend.

Launch configurations in clusters are a family of their own, because they use instructions that the others do not.
"""

from typing import NamedTuple

from ...kernels import e4m3
from ...kernels.backend import ANY, WHOLE
from ...kernels.table import BACKENDS

CLUSTERS = " in clusters"


class Family(NamedTuple):
    """The kernels of a backend for one op. `module` and `compiles`: those of the Backend."""

    backend: str
    name: str
    module: str = ""
    compiles: bool = False


def name_of(op, config=None):
    """The name of the family of a launch of `op` in this configuration (None: the default one)."""
    clusters = (config or {}).get("cluster", 1)
    return op + CLUSTERS if clusters is True or clusters > 1 else op


def family(backend, name):
    return Family(backend.name, name, backend.module, backend.compiles)


def families(backend, device):
    """The Families of `backend` on a torch.device that `backend.why_not` does not refuse."""
    found = []
    for op in (op for op in backend.kernels if op not in WHOLE):
        if op.endswith("fp8") and e4m3.why_not(device) is not None:
            continue
        if backend.kernels[op] is not None:
            found += [op, op + CLUSTERS] if op in backend.clusters else [op]
    return [family(backend, name) for name in found]


def own(device):
    """The backends with kernels of their own that run on a torch.device in earnest."""
    return [
        backend
        for backend in BACKENDS.values()
        if backend.device is not ANY
        and backend.takes(device.type)
        and backend.simulated != device.type
        and backend.why_not(device) is None
    ]
