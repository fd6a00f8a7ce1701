"""Networks of every kind, in every mode, on a GPU that is not there: check_networks.py in a process of its own."""

import pretended_gpu


def test_networks_on_a_pretended_gpu():
    pretended_gpu.run("check_networks")
