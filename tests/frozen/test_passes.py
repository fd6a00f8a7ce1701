"""The passes of a CPU engine that no convolution takes in, beside torch's operators, and what an engine says of them."""

import copy

import pytest
import torch
from foreign import lively, timm_net, tv, tv_net
from torch import nn

import resnet_fused
from resnet_fused.frozen.cpu import engine, passes
from resnet_fused.frozen.gate import Gate
from resnet_fused.frozen.network import Apply
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import with_lively_norms

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason="there is no compiled library")


def maps(dtype, *shapes):
    return [torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for shape in shapes]


def check(module, *values):
    """`module` by the library beside torch in the dtype of the values and in float64."""
    run = passes.pass_of(Apply("step", module, tuple(range(len(values))), len(values)))
    with torch.no_grad():
        eager = copy.deepcopy(module).to(values[0].dtype)(*values)
        oracle = copy.deepcopy(module).double()(*(v.double() for v in values))
    assert_within_budget(run(*values), eager, oracle, type(module).__name__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(3, 20, 9, 7), (1, 64, 1, 5)], ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "none"])
@pytest.mark.parametrize("adds", [True, False], ids=["residual", "alone"])
def test_a_gate(dtype, shape, relu, adds):
    x, residual, gate = maps(dtype, shape, shape, (*shape[:2], 1, 1))
    check(Gate(relu), x, gate.sigmoid(), *([residual] if adds else []))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_norm_with_its_relu(dtype):
    module = with_lively_norms(nn.Sequential(nn.BatchNorm2d(20, eps=0.1), nn.ReLU())).eval()
    check(module, *maps(dtype, (3, 20, 9, 7)))


def test_a_gate_in_another_dtype_promotes():
    (x,), gate = maps(torch.bfloat16, (2, 8, 5, 5)), torch.rand(2, 8, 1, 1)
    out = passes.GateOf(Gate(relu=True))(x, gate)
    assert out.dtype == torch.float32 and torch.equal(out, torch.relu(x * gate))


def test_what_the_library_runs_is_not_said_to_be_torchs(monkeypatch):
    monkeypatch.setattr(engine, "TUNING_SECONDS", 0.0)
    x = torch.randn(1, 3, 32, 32)
    dense, gated = lambda: tv.densenet.DenseNet(8, (2, 2), 16), lambda: timm_net(block_args={"attn_layer": "se"})
    notes = [str(resnet_fused.freeze(lively(make), x).notes) for make in (tv_net, dense, gated)]
    assert notes[0] == "[]" and "cat" in notes[1] and "mean" in notes[2]
    assert not any(name in "".join(notes) for name in ("BatchNorm2d", "Gate"))
