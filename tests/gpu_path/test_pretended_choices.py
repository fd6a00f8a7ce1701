"""Which kernels the CUDA path chooses, on a GPU that is not there: check_choices.py in a process of its own."""

import pretended_gpu


def test_choices_on_a_pretended_gpu():
    pretended_gpu.run("check_choices")
