"""A CUDA device that is not there: torch and this package take it for one, no kernel runs, and what would run is recorded.

This module builds and loads tests/emulator/device: torch's own dispatcher, autograd and allocator calls run for device type
"cuda", the registration code of csrc/register checks what every launcher gets, and launchers do nothing. Two CUDA devices
appear, for good, so it is for processes of its own: tests/gpu_path and benchmarks.host. It has to be imported before torch,
which asks for devices once.
"""

import contextlib
import ctypes
import functools
import sys
import types

from . import build


def _load():
    if "torch" in sys.modules:
        raise RuntimeError("emulator.pretended has to be imported before torch")
    found = ctypes.CDLL(str(build.pretended_library()), ctypes.RTLD_GLOBAL)
    found.pretended_recorded.restype = ctypes.c_char_p
    return found


_lib = _load()

import torch  # noqa: E402

from resnet_fused import dispatch  # noqa: E402
from resnet_fused.kernels import cuda  # noqa: E402
from resnet_fused.kernels.hopper.plane import cuda as plane  # noqa: E402
from resnet_fused.kernels.hopper.strip import cuda as strip  # noqa: E402

# (what, index of the device that was current) of every event, stream and graph that was used.
used = []


class _Handle:
    """An event, a stream or a graph. It belongs to the device that is current when it is made."""

    def __init__(self, *args, device=None, **kwargs):
        self.device = torch.device("cuda", torch.cuda.current_device() if device is None else device)
        self._note()

    def _note(self, *args, **kwargs):
        used.append((type(self).__name__, self.device.index))

    wait_stream = wait_event = synchronize = record = _note


class Event(_Handle):
    def elapsed_time(self, end):
        return 1.0


class Stream(_Handle):
    cuda_stream = 0


class Graph(_Handle):
    replay = _Handle._note


def _believe():
    """Replaces what torch.cuda asks of its runtime."""

    def exchange(index):
        return _lib.pretended_device(-1 if index is None else index)

    @contextlib.contextmanager
    def within(handle):
        with torch.cuda.device(handle.device):
            yield

    replaced = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *args: True,
        "device_count": lambda: 2,
        "current_device": lambda: _lib.pretended_device(-1),
        "set_device": lambda device: _lib.pretended_device(torch.device(device).index),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "synchronize": lambda device=None: used.append(("synchronize", torch.cuda.current_device())),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: types.SimpleNamespace(L2_cache_size=50 << 20),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "current_stream": lambda device=None: Stream(),
        "stream": within,
        "graph": lambda graph, **kwargs: within(graph),
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    clone = torch.UntypedStorage.clone

    def clone_storage(storage):
        if storage.device.type != "cuda":
            return clone(storage)
        return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage()

    torch.UntypedStorage.clone = clone_storage
    _backends()


def _backends():
    """The backends of the package, with launchers that check and do nothing."""
    table = dispatch.BACKENDS
    for name, make in (("cuda", cuda.kernels), ("cuda_plane", plane.kernels), ("cuda_strip", strip.kernels)):
        table[name] = table[name]._replace(why_not=lambda *device: None, kernels=make(lambda: _library), proves=False)
    choices = functools.partial(cuda.configurations, lambda: _library, "cuda")
    table["cuda"] = table["cuda"]._replace(configurations=choices)
    table["triton"] = table["triton"]._replace(why_not=lambda *device: "its kernels are not pretended")


class _Library:
    """The ops of the library as attributes. A call is noted in `record`, if there is one."""

    record = None

    def __getattr__(self, name):
        op = getattr(torch.ops.resnet_fused_pretended, name)

        def run(*args, **kwargs):
            result = op(*args, **kwargs)
            if self.record is not None:
                tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
                self.record.add(f"ours::{name}", 1, sum(t.nbytes for t in tensors))
            return result

        setattr(self, name, run)
        return run


_library = _Library()


class Record:
    """{operator: [calls, bytes]}. Bytes are those of all tensors that a call reads or writes."""

    def __init__(self):
        self.calls = {}

    def add(self, name, count, size):
        found = self.calls.setdefault(name, [0, 0])
        found[0] += count
        found[1] += size

    def count(self, *names):
        return sum(count for name, (count, _) in self.calls.items() if name in names)

    def summary(self):
        """Calls that launch, copies and fills among them, and bytes of all."""
        names = self.calls.keys() - {"aten::_local_scalar_dense"}
        fills = "aten::fill_", "aten::zero_", "aten::_foreach_zero_"
        return {
            "launches": self.count(*names), "copies": self.count("aten::copy_"), "fills": self.count(*fills),
            "bytes": sum(self.calls[name][1] for name in names),
        }  # fmt: skip


@contextlib.contextmanager
def recorded(one_by_one=True):
    """Context manager yielding a Record, which holds what ran inside once the context has ended. Blocks run op by op;
    otherwise the launchers inside of one call are not in the record."""
    record = Record()
    _lib.pretended_record(1)
    _Library.record = record
    try:
        with dispatch.record() if one_by_one else contextlib.nullcontext():
            yield record
    finally:
        _Library.record = None
        _lib.pretended_record(0)
        for line in _lib.pretended_recorded().decode().splitlines():
            name, count, size = line.split()
            record.add(name, int(count), int(size))


_believe()
