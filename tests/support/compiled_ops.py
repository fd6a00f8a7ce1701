"""The private CUDA ops themselves: on the emulator, or with --device=cuda those of the library."""

import pytest
import torch
from emulator import build

from resnet_fused import dispatch
from resnet_fused.kernels import library


@pytest.fixture
def ops(device):
    """Their namespace; tensors that a test makes are on the device they take."""
    why = dispatch.why_not_here(dispatch.BACKENDS["cuda"]) if device == "cuda" else build.why_not()
    if why is not None:
        pytest.skip(why)
    with torch.device(device):
        yield library.namespace() if device == "cuda" else build.load()


@pytest.fixture
def last_launch(device):
    """`build.last_launch`, which only the emulator knows."""
    if device == "cuda":
        pytest.skip("a GPU does not tell what it launched")
    return build.last_launch
