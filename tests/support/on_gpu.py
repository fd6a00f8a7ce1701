"""A GPU that is not there, for what is decided without running anything: tensors that only say they are on it."""

import pytest
import torch

from resnet_fused import dispatch
from resnet_fused.measure import remembered

SHAPE = (2, 64, 8, 8)
NARROW = [b.name for b in dispatch.BACKENDS.values() if b.otherwise == "cuda"]


class OnGpu(torch.Tensor):
    """No memory, and no operator runs on it."""

    def __new__(cls, dtype=torch.float16, memory_format=torch.channels_last):
        strides = torch.empty(SHAPE, device="meta").contiguous(memory_format=memory_format).stride()
        return torch.Tensor._make_wrapper_subclass(cls, SHAPE, strides=strides, dtype=dtype, device="cuda")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran on a tensor that is not there")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine where both backends run and nothing was tuned; yields what to change."""
    present = {"cuda": None, "triton": None}
    for name in present:
        backend = dispatch.BACKENDS[name]._replace(why_not=lambda device, name=name: present[name])
        monkeypatch.setitem(dispatch.BACKENDS, name, backend)
    for name in NARROW:
        monkeypatch.setitem(dispatch.BACKENDS, name, dispatch.BACKENDS[name]._replace(why_not=lambda device: None))
    monkeypatch.setattr(
        remembered, "table", lambda device: remembered.Table({"device": "none", "arch": "none"}, tmp_path)
    )
    return present
