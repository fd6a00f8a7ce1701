"""Fixtures of the tests of modules."""

import pytest
from emulator import as_backend, build

import resnet_fused


@pytest.fixture
def emulated():
    """The emulator of the CUDA kernels runs every op; skipped where it cannot be built."""
    if (why := build.why_not()) is not None:
        pytest.skip(why)
    as_backend.register()
    with resnet_fused.backend("emulator"):
        yield
