"""Two GPUs, on a GPU that is not there: check_devices.py in a process of its own."""

import pretended_gpu


def test_devices_on_a_pretended_gpu():
    pretended_gpu.run("check_devices")
