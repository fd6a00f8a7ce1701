"""Fixtures of the tests of kernels for Hopper."""

import pytest
import torch
from emulator import build

from resnet_fused import dispatch
from resnet_fused.kernels import library as compiled


@pytest.fixture
def library(request, device):
    """The ops that have the kernel BACKEND of the test's module: on the emulator, or with --device=cuda the library's."""
    on_cuda = device == "cuda"
    why = dispatch.why_not_here(dispatch.BACKENDS[request.module.BACKEND]) if on_cuda else build.why_not()
    if why is not None:
        pytest.skip(why)
    return compiled.namespace() if on_cuda else build.load()


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request):
    return request.param
