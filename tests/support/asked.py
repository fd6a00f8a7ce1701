"""What the command line of pytest asks for, before pytest has parsed it."""

import re


def for_a_gpu(arguments, environment):
    """Whether `--device cuda` stands among the arguments, or in the variable PYTEST_ADDOPTS."""
    text = " ".join([environment.get("PYTEST_ADDOPTS", ""), *arguments])
    found = re.findall(r"--device[= ](\w+)", text)
    return bool(found) and found[-1] == "cuda"


def settled(arguments, environment):
    """Variables that Triton and torch read when they are imported, which is before pytest has parsed its options.

    Unless a GPU is asked for, Triton's kernels run on CPU tensors and torch sees no GPU, so that every machine runs the same
    tests. Processes that the tests start inherit both. TRITON_INTERPRET stays where it is set already.
    """
    interpret = environment.get("TRITON_INTERPRET", "0" if for_a_gpu(arguments, environment) else "1")
    return {"TRITON_INTERPRET": interpret} | ({"CUDA_VISIBLE_DEVICES": ""} if interpret == "1" else {})
