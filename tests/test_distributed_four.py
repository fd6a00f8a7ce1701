"""Four processes on this machine: the checks in which the number of processes matters."""

import pytest
from distributed_run import results

CHECKS = ["sync_bn_of_uneven_batches", "sync_bn_with_an_empty_batch", "ddp", "fsdp2"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results(tmp_path_factory.mktemp("four"), 4, CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_four_processes(found, check):
    assert found[check] is None, found[check]
