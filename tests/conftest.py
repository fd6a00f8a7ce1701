"""Fixtures that make a green test mean something: STRICT mode, poisoned allocations, TF32 off, named backends."""

import os
import sys
import tempfile
from pathlib import Path

import asked

os.environ["RESNET_FUSED_STRICT"] = "1"
# The tests themselves say what is right. Those of the check (tests/measure) ask for it.
os.environ["RESNET_FUSED_TRUST"] = "always"
# What was tuned on this machine must not decide what the tests see, nor the tests what the machine remembers.
os.environ["RESNET_FUSED_CACHE"] = (_cache := tempfile.TemporaryDirectory(prefix="resnet_fused_")).name
os.environ.pop("COLUMNS", None)  # tables as wide as they are
os.environ.update(asked.settled(sys.argv, os.environ))

import pytest
import torch
from compiled_ops import last_launch, ops  # noqa: F401 (fixtures)
from on_gpu import gpu  # noqa: F401 (a fixture)
from stand_in import waits  # noqa: F401 (a fixture)

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure import remembered, timing


def _left_out(item, config):
    """Whether a test is not among those that were asked for: by default neither `slow` nor `exhaustive`."""
    if config.getoption("--all"):
        return False
    slow, exhaustive = (item.get_closest_marker(name) is not None for name in ("slow", "exhaustive"))
    return exhaustive or slow != config.getoption("--slow")


def pytest_collection_modifyitems(config, items):
    """Leaves out what was not asked for, and what is another process's share."""
    if out := [item for item in items if _left_out(item, config)]:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if not _left_out(item, config)]
    if share := config.getoption("--share"):
        i, n = map(int, share.split("/"))
        config.hook.pytest_deselected(items=[item for at, item in enumerate(items) if at % n != i - 1])
        items[:] = items[i - 1 :: n]


def pytest_configure(config):
    if config.getoption("--device") == "cuda" and os.environ["TRITON_INTERPRET"] == "1":
        raise pytest.UsageError("--device is cuda, but TRITON_INTERPRET is 1: Triton's kernels would run on the CPU")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also what is marked slow or exhaustive")
    parser.addoption("--slow", action="store_true", help="only what is marked slow")
    parser.addoption(
        "--share", metavar="I/N", help="only the I-th of N shares of the tests, for processes side by side"
    )
    parser.addoption("--cases", type=int, help="random networks of test_fuzz (default: 100, the same ones)")
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="device of the op tests")


# Backends that run the same op tests, and the dtypes in which their numbers count there: Triton's interpreter truncates
# float32 to bfloat16 instead of rounding.
ALL = (torch.float32, torch.float16, torch.bfloat16)
CPU_BACKENDS = {"native": ALL, "triton": (torch.float32, torch.float16), "emulator": ALL, "eager": ALL}
CUDA_BACKENDS = {"cuda": ALL, "triton": ALL, "eager": ALL}


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        on_cuda = metafunc.config.getoption("--device") == "cuda"
        metafunc.parametrize("backend", CUDA_BACKENDS if on_cuda else CPU_BACKENDS, indirect=True)


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device=cuda, but torch sees no CUDA device", 2)
    return name


@pytest.fixture
def backend(request):
    """The name of a backend that every op of the test must use; skipped, with the reason, where it cannot run."""
    name = request.param
    if name == "emulator":
        from emulator import as_backend

        as_backend.register()
    if (why := dispatch.why_not_here(dispatch.BACKENDS[name])) is not None:
        pytest.skip(f"backend {name}: {why}")
    with resnet_fused.backend(name):
        yield name


@pytest.fixture
def numbers_count(backend, device):
    """Skips dtypes whose numbers the backend does not promise on this machine."""

    def check(dtype):
        if dtype not in (CUDA_BACKENDS if device == "cuda" else CPU_BACKENDS)[backend]:
            pytest.skip(f"{backend} on a CPU does not round {dtype} as a GPU does")

    return check


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    """No test depends on how busy the machine is: what was measured under load would be measured again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TASKS", Path("/no/such/folder"))
        yield


@pytest.fixture(autouse=True)
def _fixed_numbers():
    """Same seed for every test, and IEEE float32 (TF32 is tested by name)."""
    torch.manual_seed(0)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _poison():
    """Fresh memory is NaN (torch fills it in deterministic mode), so that an element a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_emulator_stays():
    """freeze() and tune would, in the tests after, measure every emulated kernel: minutes."""
    yield
    dispatch.BACKENDS.pop("emulator", None)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The folder of a tuning cache of its own."""
    monkeypatch.setattr(remembered.env, "CACHE", tmp_path / "cache")
    remembered.forget()
    remembered._warn.cache_clear()
    yield tmp_path / "cache"
    remembered.forget()
