"""Steps of SGD on real images: fused ops train as torch does. The long version: test_training_proof.py, with --all."""

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused import BasicBlock, dispatch
from resnet_fused.commands.train import proof
from resnet_fused.measure.oracle import by_modules

pytest.importorskip("sklearn")


def test_the_loss_curve_is_as_near_to_eagers_as_eager_in_another_order():
    found, losses = proof.curves(steps=12, batch=8, orders=(1,))
    assert proof.no_further(found), found
    assert losses[-1] < losses[0]


def test_a_wrong_gradient_is_seen(monkeypatch):
    """The statistics' share of the gradient left out: a network that still learns, on another curve."""
    from resnet_fused.ops.training import unit

    def without_statistics(grad, x, out, norm, sum_g, sum_gx, *rest):
        return real(grad, x, out, norm, sum_g * 0, sum_gx * 0, *rest)

    real = unit.backward_apply
    monkeypatch.setattr(unit, "backward_apply", without_statistics)
    found, _ = proof.curves(steps=6, batch=8, orders=())
    assert not proof.no_further(found), found


@pytest.mark.parametrize("name", ["triton", "emulator"])
def test_a_few_steps_of_the_gpu_kernels(name):
    if name == "emulator":
        from emulator import as_backend

        as_backend.register()
    if (why := dispatch.BACKENDS[name].why_not()) is not None:
        pytest.skip(why)
    torch.manual_seed(0)
    blocks = (
        BasicBlock(16, 16),
        BasicBlock(16, 32, 2, nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))),
    )
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *head).train()
    eager = proof.curve(by_modules(model), 3, 8, memory_format=torch.channels_last)
    with resnet_fused.backend(name), dispatch.record() as rows:
        ours = proof.curve(model, 3, 8, memory_format=torch.channels_last)
    assert ours == pytest.approx(eager, rel=1e-4)
    assert {c.backend for op, _, c in rows if op == "conv_stats"} == {name}


def test_accuracies_are_compared_with_the_noise_of_the_seeds():
    assert proof.equal_within_noise([(0, 0.97, 0.96), (1, 0.95, 0.96), (2, 0.96, 0.95)])
    assert not proof.equal_within_noise([(0, 0.97, 0.90), (1, 0.965, 0.91), (2, 0.96, 0.90)])
