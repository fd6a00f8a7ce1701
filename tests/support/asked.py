"""What the command line of pytest asks for, before pytest has parsed it."""

import re


def for_a_gpu(arguments, environment):
    """Whether `--device cuda` stands among the arguments, or in the variable PYTEST_ADDOPTS."""
    text = " ".join([environment.get("PYTEST_ADDOPTS", ""), *arguments])
    found = re.findall(r"--device[= ](\w+)", text)
    return bool(found) and found[-1] == "cuda"
