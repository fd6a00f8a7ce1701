"""A block in one call of the CUDA library, on the emulator: bit for bit what the ops give one by one."""

import pytest
import torch
from torch import nn

from resnet_fused import dispatch
from resnet_fused.models.resnet import BasicBlock, Bottleneck, conv1x1
from resnet_fused.modules.zero_pad import ZeroPadShortcut

pytestmark = pytest.mark.usefixtures("emulated")

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
# {name: (class, channels in, planes, stride, zero-padded shortcut, layout of weights)}
BLOCKS = {
    "identity": (BasicBlock, 16, 16, 1, False, CHANNELS_LAST),
    "projection": (BasicBlock, 16, 24, 2, False, CHANNELS_LAST),
    "contiguous-weights": (BasicBlock, 16, 24, 2, False, CONTIGUOUS),
    "zero-pad": (BasicBlock, 16, 24, 2, True, CHANNELS_LAST),
    "bottleneck": (Bottleneck, 16, 8, 1, False, CHANNELS_LAST),
}


def made(name, dtype):
    cls, inplanes, planes, stride, pad, weights = BLOCKS[name]
    out, down = planes * cls.expansion, None
    if pad:
        down = ZeroPadShortcut(inplanes, out, stride)
    elif stride != 1 or inplanes != out:
        down = nn.Sequential(conv1x1(inplanes, out, stride), nn.BatchNorm2d(out))
    block = cls(inplanes, planes, stride, down)
    for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 2), nn.init.normal_(bn.bias)
        bn.running_mean.normal_(), bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, inplanes, 6, 6, dtype=dtype).to(memory_format=CHANNELS_LAST)
    return block.to(dtype, memory_format=weights).eval(), x


@pytest.fixture
def calls(monkeypatch):
    """The calls of the library's op for a block."""
    found, kernel = [], dispatch.BACKENDS["emulator"].kernels["conv_block"]
    kernels = dict(dispatch.BACKENDS["emulator"].kernels) | {
        "conv_block": lambda *args: found.append(args) or kernel(*args)
    }
    monkeypatch.setitem(dispatch.BACKENDS, "emulator", dispatch.BACKENDS["emulator"]._replace(kernels=kernels))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_one_call_gives_the_same_bits(name, dtype, calls):
    block, x = made(name, dtype)
    out = block(x)
    assert len(calls) == 1
    with dispatch.record():  # somebody watches: every op by itself
        expected = block(x)
    assert len(calls) == 1 and torch.equal(out, expected) and out.stride() == expected.stride()


@torch.no_grad()
def test_tensors_that_no_kernel_takes_run_op_by_op(calls):
    block, x = made("identity", torch.float32)
    x = torch.stack([x] * 2, -1)[..., 0]  # of no dense format
    with dispatch.strict(False):
        out = block(x)
        expected = block.forward_by_modules(x)
    assert torch.allclose(out, expected, atol=1e-5)


@torch.no_grad()
def test_autocast_is_one_call_of_maps_in_its_dtype(calls):
    block, x = made("projection", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x.bfloat16())
        assert len(calls) == 1 and calls[0][1][0].dtype == torch.bfloat16
        with dispatch.record():
            assert torch.equal(out, block(x.bfloat16()))
        block(x)  # of another dtype: op by op
    assert len(calls) == 1
