"""The fused ops as modules in somebody's own block."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_fused import dispatch
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules, with_lively_norms
from resnet_fused.nn import AddReLU, BNReLU, ConvBNReLU

CASES = {
    "3x3": (lambda: ConvBNReLU(8, 16, 3), "conv_bn_relu"),
    "stride": (lambda: ConvBNReLU(8, 16, 3, stride=2), "conv_bn_relu"),
    "groups-dilation": (lambda: ConvBNReLU(8, 16, (3, 5), dilation=(1, 2), groups=4), "conv_bn_relu"),
    "no-relu": (lambda: ConvBNReLU(8, 16, 1, relu=False, eps=0.1), "conv_bn_relu"),
    "norm": (lambda: BNReLU(8), "bn_relu"),
    "norm-no-relu": (lambda: BNReLU(8, relu=False, momentum=None), "bn_relu"),
    "norm-no-affine": (lambda: BNReLU(8, affine=False), "bn_relu"),
    "norm-no-stats": (lambda: BNReLU(8, track_running_stats=False), "bn_relu"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_module_against_its_children(name, with_residual, training):
    build, op = CASES[name]
    model, x = with_lively_norms(build()).train(training), torch.randn(3, 8, 9, 11)
    size = model(x).shape
    residual = torch.randn(size) if with_residual else None
    models = [model, by_modules(model), copy.deepcopy(model).double()]
    outs = []
    for m in models:
        dtype = torch.float64 if m is models[2] else torch.float32
        args = [t.to(dtype, copy=True).requires_grad_() for t in (x, residual) if t is not None]
        with dispatch.record() as rows:
            out = m(*args)
        assert bool(rows) == (m is model)
        out.square().sum().backward()
        outs.append([out.detach(), *(a.grad for a in args), *(p.grad for p in m.parameters())])
    for ours, eager, exact in zip(*outs, strict=True):
        assert_within_budget(ours, eager, exact, name, channel_dim=None)
    for ours, eager in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), dispatch.record() as rows:
        model.eval()(x)
    assert {row[0] for row in rows} >= {"bn_stats" if name == "norm-no-stats" else op}


def test_hooks_and_replaced_children_are_called():
    module, x = ConvBNReLU(4, 4, 3).eval(), torch.randn(1, 4, 5, 5)
    assert module.why_not_fused(x) is None and next(iter(module.state_dict())) == "conv.weight"
    handle = module.relu.register_forward_hook(lambda *args: None)
    assert module.why_not_fused(x) == "relu carries a hook"
    handle.remove()
    module = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BNReLU(4)))[0].eval()
    assert "SyncBatchNorm" in module.why_not_fused(x)
    assert (module(x) >= 0).all(), "the ReLU survives"


def test_add_relu():
    x, residual = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(AddReLU()(x, residual), torch.relu(x + residual))


def test_the_example_trains_as_plain_torch_does(capsys):
    path = Path(__file__).resolve().parents[2] / "examples" / "own_block.py"
    spec = importlib.util.spec_from_file_location("own_block", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    fused, plain = example.main()
    assert fused == pytest.approx(plain, rel=1e-4) and len(set(fused)) == 5
    out = capsys.readouterr().out
    assert "blocks.0.first.conv+bn+relu" in out and "step 4: loss" in out
