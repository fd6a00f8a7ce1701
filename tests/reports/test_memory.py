"""Bytes kept for the backward: measured with saved_tensors_hooks, predicted by memory(), and below their limits."""

import copy

import pytest
import torch
from foreign import tv_net
from torch import nn
from torchvision_shim import torchvision
from training_cases import check

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.oracle import by_modules, with_lively_norms


def saved_bytes(model, x, mode=None):
    """Distinct storages that autograd saves in a forward pass, parameters excluded; the tensors are kept alive meanwhile."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(t):
        if (at := t.untyped_storage().data_ptr()) not in own:
            kept[at] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(x)
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet_fused.resnet34(num_classes=10).train()


def test_resnet34_keeps_less_than_eager(model):
    x = torch.randn(1, 3, 224, 224)
    eager, fused = saved_bytes(by_modules(model), x), saved_bytes(model, x)
    model.memory_efficient = True
    efficient = saved_bytes(model, x)
    assert fused <= 0.76 * eager and efficient <= 0.55 * eager
    report = resnet_fused.memory(model, x.shape)
    for predicted, measured in ((report.eager, eager), (report.fused, fused), (report.efficient, efficient)):
        assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda m: m, id="train"),
        pytest.param(lambda m: m.eval(), id="frozen"),
        pytest.param(lambda m: m.layer1.requires_grad_(False), id="layer1-without-gradients"),
        pytest.param(lambda m: m.bfloat16(), id="bf16"),
        pytest.param(lambda m: m.layer2[0].conv1.register_forward_hook(lambda *_: None) and m, id="a-hooked-block"),
    ],
)
def test_the_prediction_is_right_in_other_modes(edit):
    model = resnet_fused.resnet18().train()
    edit(model)
    x = torch.randn(2, 3, 72, 64).to(model.fc.weight.dtype)
    report = resnet_fused.memory(model, x.shape)
    assert report.eager == pytest.approx(saved_bytes(by_modules(model), x), rel=0.02)
    assert report.fused == pytest.approx(saved_bytes(model, x), rel=0.02)
    model.memory_efficient = True
    assert report.efficient == pytest.approx(saved_bytes(model, x), rel=0.02)
    assert [row["name"] for row in report.rows] == ["stem", "layer1", "layer2", "layer3", "layer4"][-len(report.rows) :]
    assert "share of eager's" in str(report)


def test_the_prediction_allocates_and_changes_nothing(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = resnet_fused.memory(model, (4096, 3, 512, 512))  # 700 GB
    assert report.fused > 3e11
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules()) and "_fused_layer" not in model.__dict__


def test_wrong_arguments_are_refused(model):
    with pytest.raises(ValueError, match=r"four positive numbers \[N, C, H, W\], got \(3, 224, 224\)"):
        resnet_fused.memory(model, (3, 224, 224))
    with pytest.raises(TypeError, match=r"should be a resnet_fused\.ResNet, got Linear"):
        resnet_fused.memory(nn.Linear(3, 3), (1, 3, 224, 224))


def test_a_converted_network_is_predicted_too():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7).train()
    model = resnet_fused.convert(copy.deepcopy(theirs), memory_efficient=True)
    x = torch.randn(2, 3, 64, 64)
    report = resnet_fused.memory(model, x.shape)
    assert report.eager == pytest.approx(saved_bytes(copy.deepcopy(theirs), x), rel=0.02)
    assert report.efficient == pytest.approx(saved_bytes(copy.deepcopy(model), x), rel=0.02)
    assert report.fused <= 0.76 * report.eager and report.efficient <= 0.56 * report.eager
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-3, atol=1e-4)


class Body(nn.Module):
    """A stem and a layer, so that the whole of it can be compared: gradients of a deep network are no measure."""

    def __init__(self, memory_efficient, pool=True):
        super().__init__()
        net = resnet_fused.ResNet(resnet_fused.BasicBlock, [2, 2, 1, 1], memory_efficient=memory_efficient)
        del net.layer3, net.layer4, net.fc, net.avgpool
        self.net = with_lively_norms(net)
        if not pool:
            self.net.maxpool = nn.Identity()

    def forward(self, x):
        x = self.net._fused_stem(x, self.net.maxpool)
        return self.net._fused_layer(self.net.layer2, self.net._fused_layer(self.net.layer1, x))


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_stem_and_layers_are_equal_to_eager(memory_format, memory_efficient):
    torch.manual_seed(0)
    model = Body(memory_efficient).train().to(memory_format=memory_format)
    x = torch.randn(2, 3, 33, 40).contiguous(memory_format=memory_format)
    check(model, x, torch.randn(2, 128, 5, 5))


def test_a_stem_without_a_pool():
    torch.manual_seed(0)
    model = Body(False, pool=False).train()
    with dispatch.record() as rows:
        check(model, torch.randn(2, 3, 17, 16), torch.randn(2, 128, 5, 4))
    assert [op for op, _, _ in rows][:3] == ["conv_stats", "bn_stats", "bn_relu"]


def test_memory_efficient_is_bit_for_bit_the_other_way():
    """What is computed again is computed by the same kernels from the same values."""
    torch.manual_seed(0)
    models = [resnet_fused.resnet18(num_classes=7).train()]
    models.append(copy.deepcopy(models[0]))
    models[1].memory_efficient = True
    x = torch.randn(3, 3, 48, 40)
    outs = [m(x) for m in models]
    for out in outs:
        out.square().sum().backward()
    assert torch.equal(*outs)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(*(m.parameters() for m in models), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(*(m.buffers() for m in models), strict=True))


def test_the_argument_of_the_constructors():
    assert resnet_fused.resnet34(memory_efficient=True).memory_efficient
    assert not resnet_fused.resnet50().memory_efficient


def test_a_stem_sees_nan_and_ties_as_torch_does():
    """Ties in a window, a NaN, and windows without a positive value."""
    torch.manual_seed(0)
    model = Body(False).train()
    x = torch.randn(2, 3, 33, 40)
    x[:, :, ::2] = x[:, :, 1::2].repeat_interleave(2, 2)[:, :, :17]
    results = []
    for m in (model, by_modules(model)):
        stem = copy.deepcopy(m.net)
        with torch.no_grad():
            stem.bn1.bias[3] = -20.0  # never positive
            stem.bn1.weight[5] = float("nan")
        stem._fused_stem(x, stem.maxpool).nan_to_num().square().sum().backward()
        results.append((stem.conv1.weight.grad, stem.bn1.weight.grad, stem.bn1.bias.grad))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_memory_efficient_is_remembered_and_forgotten():
    model = tv_net()
    before = dict(model.__dict__)
    resnet_fused.convert(model, memory_efficient=True)
    assert model.memory_efficient
    x = torch.randn(2, 3, 48, 48)
    efficient = saved_bytes(model, x)
    resnet_fused.convert(model)
    assert not model.memory_efficient and efficient < 0.8 * saved_bytes(model, x)
    resnet_fused.convert(model, memory_efficient=True)
    resnet_fused.unconvert(model)
    assert dict(model.__dict__) == before
