"""The committed counts of launches, copies and bytes, on a GPU that is not there: check_launches.py in a process of its own."""

import pretended_gpu


def test_launches_on_a_pretended_gpu():
    pretended_gpu.run("check_launches")
