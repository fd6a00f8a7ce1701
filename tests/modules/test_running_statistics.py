"""Running statistics and counters of batch norms that train, in every dtype: within eager's error, and counted alike."""

import copy

import pytest
import torch
from torch import nn

from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.models.resnet import BasicBlock
from resnet_fused.modules import training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_after_two_steps(dtype):
    """Two momenta, and one cumulative average: three groups, each updated together."""
    down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16, momentum=None))
    block = BasicBlock(8, 16, 2, down)
    block.bn1.momentum = 0.3
    ours = block.to(dtype).train()
    eager, oracle = copy.deepcopy(ours), copy.deepcopy(ours).double()
    for x in torch.randn(2, 4, 8, 9, 9).to(dtype):
        assert training.route(x, [ours._fused_chain()]) == "training"
        ours(x), eager.forward_by_modules(x), oracle.forward_by_modules(x.double())
    exact = dict(oracle.named_buffers())
    of_eager = dict(eager.named_buffers())
    for name, buffer in ours.named_buffers():
        assert buffer.dtype == of_eager[name].dtype
        if name.endswith("num_batches_tracked"):
            assert buffer == of_eager[name] == 2
        else:
            assert_within_budget(buffer, of_eager[name], exact[name], name)
