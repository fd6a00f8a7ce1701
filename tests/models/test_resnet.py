"""The network against torchvision's: weights, keys, random numbers, outputs, gradients, buffers, in every mode."""

import copy
import io
import pickle

import pytest
import torch
from resnets import narrow, pair
from torch import nn
from torchvision_shim import torchvision

import resnet_fused
from resnet_fused import dispatch, strict
from resnet_fused.measure.accuracy import assert_within_budget

tv = torchvision.models
NAMES = ["resnet34", "resnet50"]  # others: test_weights.py


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_torchvisions_weights(name):
    models = []
    for module in (resnet_fused, tv):
        torch.manual_seed(7)
        models.append(getattr(module, name)(num_classes=13, zero_init_residual=True))
    ours, theirs = models
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert torch.rand(1).isfinite() and [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]


def test_resnet34_has_the_papers_size():
    model = resnet_fused.resnet34()
    assert len(model.state_dict()) == 218
    assert sum(p.numel() for p in model.parameters()) == 21_797_672
    assert [len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 3, 64, 64), id="64"),
        pytest.param((1, 3, 33, 47), id="odd"),
        pytest.param((3, 3, 32, 32), id="cifar"),
    ],
)
def test_evaluation(name, shape):
    ours, theirs = (m.eval() for m in pair(name))
    x = torch.randn(shape)
    exact = copy.deepcopy(theirs).double()
    with torch.no_grad(), dispatch.record() as rows:
        assert_within_budget(ours(x), theirs(x), exact(x.double()), "logits", channel_dim=None)
    assert len(rows) > 2 * 17 and all(choice.backend != "eager" for _, _, choice in rows)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_steps(name):
    """Logits, gradients and buffers over three steps of SGD."""
    models = pair(name)
    models = [*models, copy.deepcopy(models[1]).double()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    for step in range(3):
        torch.manual_seed(step)
        x, target = torch.randn(4, 3, 40, 40), torch.randint(0, 1000, (4,))
        logits = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            logits.append(model(x.to(model.fc.weight.dtype)))
            nn.functional.cross_entropy(logits[-1], target).backward()
            if step == 0:
                grads = [p.grad.double().flatten() for p in model.parameters()]
                logits.append(torch.cat(grads))
            optimizer.step()
        if step == 0:
            (ours, our_grads, eager, eager_grads, exact, exact_grads) = logits
            assert_within_budget(ours, eager, exact, "logits", channel_dim=None)
            ours_off, eager_off = ((g - exact_grads).norm() / exact_grads.norm() for g in (our_grads, eager_grads))
            assert ours_off <= 2 * eager_off + 1e-6, f"gradients: {ours_off:.2e} beside eager's {eager_off:.2e}"
    for (key, ours), eager, exact in zip(
        models[0].state_dict().items(), *(m.state_dict().values() for m in models[1:]), strict=True
    ):
        if key.endswith("num_batches_tracked"):
            assert ours == eager == 3
        elif "running" in key:
            ours_off, eager_off = ((t.double() - exact).norm() / exact.norm() for t in (ours, eager))
            assert ours_off <= 2 * eager_off + 1e-5, f"{key}: {ours_off:.2e} beside eager's {eager_off:.2e}"


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad"])
@pytest.mark.parametrize("training", [pytest.param(True, id="train"), pytest.param(False, id="eval")])
def test_a_whole_network_on_every_backend(backend, device, shortcut, training):
    """Forward and backward, by the kernels and module by module: the same network."""
    model = narrow(shortcut).to(device).train(training)
    reference = copy.deepcopy(model)
    x = torch.randn(
        3, 3, 40, 64, device=device
    )  # 12 values per channel in layer4: fewer make batch norm ill-conditioned
    with dispatch.record() as rows:
        out = model(x)
        out.square().sum().backward()
    used = {choice.backend for _, _, choice in rows}
    assert backend in used and used <= {backend, "torch"}, used
    for block in reference.modules():
        if isinstance(block, resnet_fused.BasicBlock):
            block.forward = block.forward_by_modules
    reference.relu.register_forward_hook(lambda *_: None)
    exact = copy.deepcopy(reference).double()
    outs = []
    for m, t in ((reference, x), (exact, x.double())):
        with dispatch.record() as rows:
            outs.append(m(t))
            outs[-1].square().sum().backward()
        assert not rows
    assert_within_budget(out, *outs, "logits", channel_dim=None)
    for (name, p), e, o in zip(model.named_parameters(), reference.parameters(), exact.parameters(), strict=True):
        ours_off, eager_off = ((g.double() - o.grad).norm() / o.grad.norm() for g in (p.grad, e.grad))
        assert ours_off <= 2 * eager_off + 2e-5, f"{name}: {ours_off:.2e} beside eager's {eager_off:.2e}"
        assert p.grad.dtype == p.dtype
    for (name, b), e in zip(model.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(b, e, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")])
def test_half_models_and_autocast(dtype):
    ours, theirs = pair("resnet18")
    x = torch.randn(2, 3, 64, 64)
    exact = copy.deepcopy(theirs).eval().double()(x.double()).detach()
    for m in (ours, theirs):
        m.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        a, b = ours(x), theirs(x)
        assert a.dtype == b.dtype == dtype
        assert_within_budget(a, b, exact, "autocast logits", channel_dim=None)
    low = [copy.deepcopy(m).to(dtype) for m in (ours, theirs)]
    rounded = copy.deepcopy(low[1]).double()(x.to(dtype).double()).detach()
    with torch.no_grad():
        assert_within_budget(low[0](x.to(dtype)), low[1](x.to(dtype)), rounded, "half logits", channel_dim=None)
    low[0].train()
    low[0](x.to(dtype)).float().square().sum().backward()
    assert low[0].bn1.running_mean.dtype == dtype and low[0].conv1.weight.grad.isfinite().all()


def test_modes_are_those_of_every_batch_norm():
    """Some batch norms train, some are frozen, some keep no statistics: as eager, layer by layer."""

    def edit(model):
        model.train()
        model.layer1[0].bn1.eval()
        model.layer2.eval()
        model.layer2[0].bn2.weight.requires_grad_(False)
        model.layer2[0].bn2.bias.requires_grad_(False)
        model.layer3[0].bn1.momentum = None
        model.layer3[0].bn2.track_running_stats = False
        model.layer4[0].bn1.running_mean = model.layer4[0].bn1.running_var = None
        model.layer4[0].bn1.eval()
        model.layer4[0].bn2.eps = 0.1
        return model

    ours, theirs = (edit(m) for m in pair("resnet18"))
    x = torch.randn(3, 3, 48, 48)
    for _ in range(2):
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for m, out in ((ours, a), (theirs, b)):
        out.square().mean().backward()
        assert m.layer2[0].bn2.weight.grad is None
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-3 * q.grad.norm() + 1e-6, name
    for (name, p), q in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(p, q[1], rtol=1e-4, atol=1e-5, msg=name)


def test_copies_and_checkpoints():
    ours, theirs = (m.eval() for m in pair("resnet18"))
    x = torch.randn(1, 3, 40, 40)
    expected = ours(x)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
        assert torch.equal(copied(x), expected)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert torch.equal(ours(x), expected)


def test_constructor_errors_are_torchvisions():
    with pytest.raises(ValueError, match="BasicBlock only supports groups=1 and base_width=64"):
        resnet_fused.resnet18(groups=2)
    with pytest.raises(NotImplementedError, match="Dilation > 1 not supported in BasicBlock"):
        resnet_fused.resnet34(replace_stride_with_dilation=[False, True, True])
    with pytest.raises(ValueError, match="replace_stride_with_dilation should be None or a 3-element tuple"):
        resnet_fused.resnet50(replace_stride_with_dilation=[True])
    with pytest.raises(ValueError, match="'projection' or 'zero_pad', got 'C'"):
        narrow(shortcut="C")


def test_variants_of_the_constructor():
    x = torch.randn(1, 3, 64, 64)
    for kwargs in (
        {"groups": 4, "width_per_group": 8},
        {"width_per_group": 128},
        {"replace_stride_with_dilation": [False, True, True]},
        {"norm_layer": lambda c: nn.BatchNorm2d(c, eps=1e-3, momentum=None)},
    ):
        ours, theirs = (m.eval() for m in pair("resnet50", num_classes=7, **kwargs))
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=2e-4, atol=2e-4)
    ours, theirs = (m.eval() for m in pair("resnet18", norm_layer=lambda c: nn.GroupNorm(4, c)))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert "GroupNorm" in ours.layer1[0].why_not_fused(x)


def test_bad_input_raises_what_torchvision_raises():
    ours, theirs = pair("resnet18")
    for x in (torch.randn(2, 4, 32, 32), torch.randn(3, 32, 32), torch.randn(2, 3, 32, 32).double()):
        errors = []
        for model in (ours, theirs):
            with pytest.raises(Exception) as caught, strict(False):
                model(x)
            errors.append(type(caught.value))
        assert errors[0] is errors[1], errors
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training, got input size"):
        ours.train()(torch.randn(1, 3, 32, 32))
    assert ours.layer4[0].bn1.num_batches_tracked == 0  # torch counts before it checks
