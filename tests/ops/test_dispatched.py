"""Ops as torch's dispatcher calls them: what stands between a caller and an op still sees it, with and without gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [False, True], ids=["no-gradient", "gradient"])
def test_a_mode_sees_the_op(wanted):
    x, residual = torch.randn(2, 3, 4, 4, requires_grad=wanted), torch.randn(2, 3, 4, 4)
    with Watch() as watch:
        y = torch.ops.resnet_fused.add_relu(x, residual)
    assert watch.seen[0] == "resnet_fused.add_relu.default"
    assert y.requires_grad is wanted and torch.equal(y, torch.relu(x + residual))


def test_gradients_are_recorded_where_a_later_argument_wants_one():
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    y = torch.ops.resnet_fused.add_relu(x, residual)
    y.sum().backward()
    assert torch.equal(residual.grad, (y > 0).float())
    with torch.no_grad():
        assert not torch.ops.resnet_fused.add_relu(x, residual).requires_grad
