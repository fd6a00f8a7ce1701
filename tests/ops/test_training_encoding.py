"""Blocks as the arguments of an op: the worked example of the module is right, and what is encoded comes back."""

import doctest

import pytest
import torch

from resnet_fused.ops.training import encoding
from resnet_fused.ops.training.unit import Block, Unit


def test_the_worked_example():
    result = doctest.testmod(encoding)
    assert result.failed == 0 and result.attempted > 10


def unit(value, affine=(True, True), frozen=False, stride=1, group=""):
    made = [torch.full((1,), float(value + i)) for i in range(5)]
    norm = [t if there else None for t, there in zip(made[1:], (*affine, frozen, frozen), strict=True)]
    return Unit(made[0], *norm, [stride, stride], [value, 0], [1, 2], value, 0.1 * value, group)


CASES = {
    "one unit": [Block([unit(1)], None)],
    "without weight or bias": [Block([unit(1, affine=(False, True)), unit(10, affine=(True, False))], None)],
    "frozen statistics": [Block([unit(1, frozen=True), unit(10)], unit(20, frozen=True, stride=2))],
    "process groups": [Block([unit(1, group="0"), unit(10)], unit(20, group="1"))],
    "blocks": [Block([unit(1), unit(10), unit(20)], unit(30)), Block([unit(40), unit(50)], None)],
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_encoded_comes_back(case):
    blocks = CASES[case]
    arguments = encoding.encode(blocks)
    assert encoding.decode(*arguments) == blocks
    assert encoding.any_frozen(arguments[1]) == (case == "frozen statistics")
