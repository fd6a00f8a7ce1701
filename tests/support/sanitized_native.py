"""A plugin of pytest (-p sanitized_native): the tests run on the package's library built with the sanitizers."""

from emulator import build


def pytest_configure(config):
    from resnet_fused.kernels import library  # not before conftest.py has set the environment

    library.LIBRARY = build.cpu_library()
