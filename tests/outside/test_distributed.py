"""Two processes on this machine: synchronised batch norm, DDP, FSDP2."""

import pytest
from distributed_checks import CHECKS
from distributed_run import results


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(found, check):
    assert found[check] is None, found[check]
