"""Blocks in training in one call of the CUDA library for each direction, on the emulator: bit for bit what the passes give."""

import copy

import pytest
import torch
from torch import nn

from resnet_fused import dispatch
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.resnet import BasicBlock, Bottleneck, conv1x1
from resnet_fused.modules import training

pytestmark = pytest.mark.usefixtures("emulated")

CHANNELS_LAST = torch.channels_last


def _frozen_norms(blocks):
    for m in blocks.modules():
        if isinstance(m, nn.BatchNorm2d) and m is not blocks[1].bn1:
            m.eval()
    blocks[0].bn2.weight.requires_grad_(False)  # its output of the convolution is not kept


def _frozen_convolutions(blocks):
    for name, p in blocks.named_parameters():
        p.requires_grad_(p.dim() == 1 and name != "1.bn1.bias")


def _frozen_first_block(blocks):
    blocks[0].requires_grad_(False)
    blocks[1].conv1.requires_grad_(False)
    blocks[1].bn1.requires_grad_(False)


def _without_affine(blocks):
    blocks[0].bn1 = nn.BatchNorm2d(16, affine=False)
    blocks[1].bn2 = nn.BatchNorm2d(24, affine=False, track_running_stats=False)


def _contiguous_weights(blocks):
    blocks.to(memory_format=torch.contiguous_format)


# {name: (class, what is changed, whether x wants a gradient)}
RUNS = {
    "plain": (BasicBlock, None, True),
    "bottleneck": (Bottleneck, None, True),
    "no-gradient-of-x": (BasicBlock, None, False),
    "contiguous-weights": (BasicBlock, _contiguous_weights, True),
    "frozen-norms": (BasicBlock, _frozen_norms, True),
    "frozen-convolutions": (BasicBlock, _frozen_convolutions, False),
    "frozen-first-block": (BasicBlock, _frozen_first_block, False),
    "without-affine": (BasicBlock, _without_affine, True),
}


@pytest.fixture
def calls(monkeypatch):
    """The names of the library's ops for runs of blocks that were called."""
    found, backend = [], dispatch.BACKENDS["emulator"]

    def noted(op, kernel):
        return lambda *args: found.append(op) or kernel(*args)

    ops = "training_blocks", "training_blocks_backward"
    kernels = dict(backend.kernels) | {op: noted(op, backend.kernels[op]) for op in ops}
    monkeypatch.setitem(dispatch.BACKENDS, "emulator", backend._replace(kernels=kernels))
    return found


def made(name, dtype):
    """A block without and one with a projection."""
    cls, change, want_x = RUNS[name]
    torch.manual_seed(0)
    planes = [16 // cls.expansion, 24 // cls.expansion]
    down = nn.Sequential(conv1x1(16, 24, 2), nn.BatchNorm2d(24))
    blocks = nn.Sequential(cls(16, planes[0]), cls(16, planes[1], 2, down))
    if change is not None:
        change(blocks.to(memory_format=CHANNELS_LAST))
    blocks = with_lively_norms(blocks).to(dtype)
    if change is not _contiguous_weights:
        blocks.to(memory_format=CHANNELS_LAST)
    x = torch.randn(2, 16, 6, 6, dtype=dtype).to(memory_format=CHANNELS_LAST).requires_grad_(want_x)
    return blocks, x, torch.randn(2, 24, 3, 3, dtype=dtype)


def step(blocks, x, grad):
    """Every tensor that comes out of a step of copies."""
    blocks, x = copy.deepcopy(blocks), x.detach().clone().requires_grad_(x.requires_grad)
    out = training.residual(x, [block._fused_chain() for block in blocks])
    out.backward(grad)
    found = {"out": out.detach(), "x": x.grad} | {n: p.grad for n, p in blocks.named_parameters()}
    return found | {f"{n} of {len(b.shape)}": b for n, b in blocks.named_buffers()}


def check(name, dtype, calls):
    ours = step(*made(name, dtype))
    assert calls == ["training_blocks", "training_blocks_backward"]
    with dispatch.record():  # somebody watches: every pass by itself
        expected = step(*made(name, dtype))
    assert len(calls) == 2 and ours.keys() == expected.keys()
    for key, value in expected.items():
        assert (ours[key] is None) == (value is None), key
        if value is not None:
            assert torch.equal(ours[key], value) and ours[key].stride() == value.stride(), key
    return ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RUNS)
def test_one_call_gives_the_same_bits(name, dtype, calls):
    found = check(name, dtype, calls)
    assert (found["x"] is None) is not RUNS[name][2]


def test_convolutions_of_torch_give_the_same_bits(calls, monkeypatch):
    backend = dispatch.BACKENDS["emulator"]
    refusal = backend._replace(refusal=lambda op, convolution: "refused" if op == "conv_stats" else None)
    monkeypatch.setitem(dispatch.BACKENDS, "emulator", refusal)
    check("plain", torch.float32, calls)


def test_float32_norms_of_half_convolutions(calls):
    blocks, x, grad = made("plain", torch.bfloat16)
    for bn in (m for m in blocks.modules() if isinstance(m, nn.BatchNorm2d)):
        bn.float()
    ours = step(blocks, x, grad)
    with dispatch.record():
        expected = step(blocks, x, grad)
    assert len(calls) == 2 and ours["0.bn1.weight"].dtype == torch.float32
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_what_the_passes_decide_runs_pass_by_pass(calls):
    blocks, x, grad = made("plain", torch.float32)
    chains = [block._fused_chain() for block in blocks]
    training.residual(x, chains, recompute=True).backward(grad)
    one_pixel = x.detach()[:, :, :1, :1].clone().requires_grad_()  # dense in both formats
    training.residual(one_pixel, chains[:1]).backward(torch.ones(2, 16, 1, 1))
    training.residual(x.detach().contiguous().requires_grad_(), chains).backward(grad)
    assert calls == []
