"""200 steps of SGD and whole trainings from three seeds, fused beside eager: `python -m resnet_fused.train.proof`."""

import pytest

from resnet_fused.commands.train import proof

pytest.importorskip("sklearn")
pytestmark = pytest.mark.exhaustive("trains for minutes")


def test_two_hundred_steps():
    found, losses = proof.curves(steps=200, batch=32)
    print(found)
    assert proof.no_further(found), found
    assert losses[-1] < 0.1 * losses[0]


def test_accuracy_over_three_seeds():
    found = proof.accuracies(seeds=3, epochs=6)
    print(found)
    assert proof.equal_within_noise(found), found
    assert min(row[1] for row in found) > 0.85
