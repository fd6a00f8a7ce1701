"""Where torch's own convolution is garbage, the ops compute the right result, and reports say so."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from broken_torch import broken_torch
from cases import channels
from eager import eager_of
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.kernels import library, torch_convolution
from resnet_fused.measure.accuracy import assert_within_budget, budget_used, exact
from resnet_fused.measure.oracle import by_modules, with_lively_norms
from resnet_fused.modules import one_call
from resnet_fused.ops.conv_bn_relu import reference

LOW = torch.bfloat16
SHAPES = [
    pytest.param((2, 256, 4, 2), (8, 256, 3, 3), 2, 1, "2 x 1", id="3x3-on-4x2"),
    pytest.param((2, 256, 7, 1), (8, 256, 3, 3), 2, 1, "4 x 1", id="3x3-on-7x1"),
    pytest.param((1, 3, 200, 1), (8, 3, 7, 7), 2, 3, "100 x 1", id="7x7-on-200x1"),
    pytest.param((2, 64, 8, 2), (8, 64, 1, 1), 2, 0, "4 x 1", id="projection"),
    pytest.param((2, 256, 2, 2), (8, 256, 3, 3), 2, 1, None, id="one-pixel"),
    pytest.param((2, 256, 4, 4), (8, 256, 3, 3), 2, 1, None, id="two-columns"),
    pytest.param((2, 256, 2, 8), (8, 256, 3, 3), 2, 1, None, id="one-row"),
    pytest.param((2, 256, 4, 1), (8, 256, 3, 3), 1, 1, None, id="stride-1"),
]


def pair(value):
    return value, value


@pytest.fixture
def broken(monkeypatch):
    with broken_torch(monkeypatch):
        yield


@pytest.mark.parametrize("shape, weight, stride, padding, rows", SHAPES)
def test_which_shapes_are_wrong(monkeypatch, shape, weight, stride, padding, rows):
    def why(device="cpu", dtype=LOW):
        return torch_convolution.why_wrong(device, dtype, shape, weight, pair(stride), pair(padding), (1, 1))

    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: True)
    assert why() is None if rows is None else f"(stride 2, an output of {rows}, AMX)" in why()
    assert why(dtype=torch.float32) is why(dtype=torch.float16) is why("cuda") is None
    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: False)
    assert why() is None


class Dtypes(TorchDispatchMode):
    """The dtypes in which torch computes gradients of convolutions."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.found.append(args[0].dtype)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("channels", "size", "stride", "wanted", "expected"), [
    pytest.param(8, 1, 2, (True, True), torch.float32, id="of-8-channels"),
    pytest.param(15, 1, 2, (False, True), torch.float32, id="of-15-channels"),
    pytest.param(16, 1, 2, (True, True), LOW, id="of-16-channels"),
    pytest.param(8, 1, 1, (True, True), LOW, id="stride-1"),
    pytest.param(8, 3, 2, (True, True), LOW, id="3x3"),
    pytest.param(8, 1, 2, (True, False), LOW, id="of-the-input-alone"),
])  # fmt: skip
def test_gradients_of_few_channels(channels, size, stride, wanted, expected):
    """torch's own writes past the memory of the gradient of the weight, with several threads."""
    x, weight = torch.randn(2, channels, 6, 6).to(LOW), torch.randn(8, channels, size, size).to(LOW)
    geometry = pair(stride), pair(size // 2), (1, 1), 1
    grad = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    with Dtypes() as dtypes:
        found = torch_convolution.gradients(grad, x, weight, *geometry, wanted)
    assert dtypes.found == [expected]
    assert [None if t is None else t.dtype for t in found] == [LOW if want else None for want in wanted]


def case(dtype=LOW):
    """Arguments of conv_bn_relu for a convolution whose output is one column."""
    x = torch.randn(2, 64, 40, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(32, 64, 3, 3).div(24).to(dtype), *channels(32), torch.randn(2, 32, 20, 1).to(dtype)


def yardsticks(arguments, **kwargs):
    oracle = reference(*map(exact, arguments), stride=2, padding=1, **kwargs)
    return eager_of(lambda: reference(*arguments, stride=2, padding=1, **kwargs), oracle), oracle


def test_the_op(broken):
    arguments = case()
    ours = ops.conv_bn_relu(*arguments, stride=2, padding=1)
    assert_within_budget(ours, *yardsticks(arguments), "conv_bn_relu", channel_dim=None)


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_training_of_the_op(broken, autocast):
    arguments = case()
    statistics = [t.clone() for t in arguments[4:6]]
    eager, oracle = yardsticks([*arguments[:4], *statistics, arguments[6]], training=True)
    given = [t.float() if autocast else t for t in arguments[:2]]
    with torch.autocast("cpu", LOW, enabled=autocast):
        ours = ops.conv_bn_relu(*given, *arguments[2:], stride=2, padding=1, training=True)
    assert_within_budget(ours, eager, oracle, "conv_bn_relu", channel_dim=None)


def test_gradients_are_those_of_float32_rounded(monkeypatch):
    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: True)
    x, weight, *_, grad = case()
    found = torch_convolution.gradients(grad, x, weight, (2, 2), (1, 1), (1, 1), 1, (True, True))
    wide = [t.float().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(F.conv2d(*wide, stride=2, padding=1), wide, grad.float())
    for ours, single in zip(found, expected, strict=True):
        assert torch.equal(ours, single.to(LOW))
    assert torch_convolution.gradients(grad, x, weight, (2, 2), (1, 1), (1, 1), 1, (False, True))[0] is None


def network():
    torch.manual_seed(0)
    model = with_lively_norms(resnet_fused.resnet18(num_classes=10)).to(LOW).eval()
    return model, torch.randn(2, 3, 64, 32).to(LOW)  # layer4's map is 2 x 1


@torch.no_grad()
def test_a_network(monkeypatch):
    model, x = network()
    oracle = copy.deepcopy(model).double()(x.double())
    eager = eager_of(lambda: by_modules(model)(x), oracle)
    with broken_torch(monkeypatch, known=False), dispatch.record():  # observed: op by op
        assert not budget_used(model(x), eager, oracle, channel_dim=None) <= 1, "the machine is not broken"
    with broken_torch(monkeypatch):
        assert_within_budget(model(x), eager, oracle, "logits", channel_dim=None)
        with dispatch.record():
            assert_within_budget(model(x), eager, oracle, "logits, op by op", channel_dim=None)


@pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
def test_the_library_does_not_run_such_a_block(broken):
    """It would call torch's own convolution."""
    model, x = network()
    with torch.no_grad():
        model(x)
    blocks = one_call._remembered.answers(torch.device("cpu"), LOW).items()
    assert {tuple(block[0][1:]) for (block, *_), call in blocks if call is None} == {(256, 4, 2)}
    assert len(blocks) == 7  # of 8, two of which are alike


def test_an_engine_does_not_run_it_by_onednn(broken):
    model, x = network()
    with torch.no_grad():
        oracle = copy.deepcopy(model).double()(x.double())
        eager = eager_of(lambda: by_modules(model)(x), oracle)
        engine = resnet_fused.freeze(model.float(), x.float(), dtype=LOW)
    backends = {row["name"]: row["backend"] for row in engine.rows}
    assert all("onednn" not in backends[f"layer4.0.{name}"] for name in ("conv1", "downsample"))
    assert_within_budget(engine(x), eager, oracle, "frozen", channel_dim=None)


def test_a_training_step(monkeypatch):
    model, x = network()
    model.train()
    right = copy.deepcopy(model)
    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: True)
    right(x).float().square().sum().backward()
    with broken_torch(monkeypatch):
        model(x).float().square().sum().backward()
    for ours, theirs in zip(model.parameters(), right.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_explain_says_so(broken):
    reasons = {row["name"]: row["reason"] for row in resnet_fused.explain(*network()).rows}
    assert {name for name, why in reasons.items() if "torch's own bfloat16 convolution is wrong here" in why} == {
        "layer4.0.conv1+bn1+relu",
        "layer4.0.downsample.0+1",
    }


@pytest.mark.parametrize("known", [True, False], ids=["mended", "unknown"])
def test_verify_says_so(monkeypatch, known):
    module = importlib.import_module("resnet_fused.reports.verify.verify")  # the package has a function of that name
    monkeypatch.setattr(module, "check_model", lambda *args: ())
    with broken_torch(monkeypatch, known), resnet_fused.backend("auto"):
        report = resnet_fused.verify("cpu", [LOW], quick=True)
    verdicts = {row["verdict"] for row in report.rows if " column " in row["what"]}
    assert report.passed is known
    assert verdicts == ({"ok; torch's own result is wrong here"} if known else {"FAILED"})
    assert {row["verdict"] for row in report.rows if " column " not in row["what"]} == {"ok"}
