"""Networks of every kind, in every mode, on a GPU that is not there: check_networks.py in processes of its own."""

import pretended_gpu
import pytest


@pytest.mark.parametrize("share", ["1/2", "2/2"])
def test_networks_on_a_pretended_gpu(share):
    pretended_gpu.run("check_networks", "--share", share)
