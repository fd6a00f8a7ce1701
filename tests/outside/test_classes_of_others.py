"""FSDP2 and parametrizations give a converted module a class of their own: edits and unconvert() keep it."""

import copy

import pytest
import torch
from foreign import Plain, lively, timm_net, tv_net
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import parametrize

from resnet_fused import convert, unconvert
from resnet_fused.commands.train.group import process_group
from resnet_fused.conversion.convert import is_converted

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture
def one_process():
    with process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1):
        yield torch.distributed.init_device_mesh("cpu", (1,))


def sharded(model, mesh):
    for block in (model.layer1[0], model.layer2[0]):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(model, x):
    """(output, gradients) of a step of training."""
    model.zero_grad()
    out = model.train()(x)
    out.square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    return out.detach(), [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]


def assert_equal_steps(model, eager, x):
    (out, grads), (expected, expected_grads) = step(model, x), step(eager, x)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    for a, b in zip(grads, expected_grads, strict=True):
        assert (a - b).norm() <= 5e-3 * b.norm() + 1e-5


@pytest.mark.parametrize("first", ["convert", "shard"])
@pytest.mark.parametrize("net", [tv_net, timm_net], ids=["torchvision", "timm"])
def test_fsdp2(net, first, one_process):
    eager, x = lively(net), torch.randn(2, 3, 40, 40)
    model = copy.deepcopy(eager)
    if first == "convert":
        convert(model, strict=True)
    sharded(model, one_process)
    convert(model, strict=True)
    block = model.layer1[0]
    name = type(block).__name__
    assert_equal_steps(model, eager, x)
    block.bn1, eager.layer1[0].bn1 = nn.Identity(), nn.Identity()  # matched again
    assert isinstance(block, FSDPModule) and is_converted(block) and type(block).__name__ == name
    assert_equal_steps(model, eager, x)
    unconvert(model)
    assert isinstance(model, FSDPModule) and isinstance(block, FSDPModule) and not is_converted(block)
    assert_equal_steps(model, eager, x)
    block.reshard()


class Scaled(Plain):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return super().forward(x) * self.gain


class Tripled(nn.Module):
    def forward(self, value):
        return value * 3


def test_a_parametrized_block():
    eager, x = lively(Scaled), torch.randn(2, 8, 9, 9)
    block = convert(copy.deepcopy(eager), strict=True)
    for module in (eager, block):
        parametrize.register_parametrization(module, "gain", Tripled())
        module.norm_a = nn.BatchNorm2d(8).eval()
    assert block.gain == 6 and parametrize.is_parametrized(block) and is_converted(block)
    torch.testing.assert_close(block(x), eager(x), rtol=1e-4, atol=1e-5)
    parametrize.remove_parametrizations(block, "gain")
    torch.testing.assert_close(block(x), eager(x), rtol=1e-4, atol=1e-5)
    assert type(unconvert(block)) is Scaled
