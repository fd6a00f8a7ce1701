"""Residual blocks in training, fused, on every backend: values, gradients and running statistics in every mode."""

import contextlib

import pytest
import torch
from cases import DTYPES, FORMATS
from torch import nn
from training_cases import block, check, data, frozen, step

from resnet_fused import dispatch
from resnet_fused.measure.oracle import by_modules

LAST = torch.channels_last
KINDS = [
    pytest.param("identity", 1, id="identity"),
    pytest.param("projection", 2, id="projection"),
    pytest.param("bottleneck", 1, id="bottleneck"),
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kind", "stride"), KINDS)
def test_float32(backend, device, kind, stride, memory_format):
    model = block(kind, stride=stride).to(device, memory_format=memory_format)
    x, grad = data(model, (3, 16, 9, 8), memory_format=memory_format, device=device)
    with dispatch.record() as rows:
        model(x)
    used = {(op, choice.backend) for op, _, choice in rows}
    own = backend if memory_format == LAST and backend in ("triton", "emulator", "cuda", "native") else "torch"
    assert ("conv_stats", own if backend != "eager" else "eager") in used
    check(model, x, grad)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("kind", "stride"), KINDS[:2])
def test_half(backend, numbers_count, device, kind, stride, dtype):
    numbers_count(dtype)
    model = block(kind, stride=stride).to(device, dtype, memory_format=LAST)
    x, grad = data(model, (3, 16, 9, 8), dtype, device=device)
    check(model, x, grad)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(frozen, id="frozen"),
        pytest.param(lambda m: m.bn1.eval(), id="first-frozen"),
        pytest.param(lambda m: m.bn2.eval(), id="second-frozen"),
        pytest.param(lambda m: m.downsample[1].eval(), id="projection-frozen"),
        pytest.param(lambda m: m.eval() and m.bn2.train(), id="only-second-trains"),
        pytest.param(lambda m: setattr(m.bn1, "momentum", None), id="momentum-none"),
        pytest.param(lambda m: setattr(m.bn1, "track_running_stats", False), id="not-tracked"),
        pytest.param(lambda m: setattr(m, "bn1", nn.BatchNorm2d(32, track_running_stats=False)), id="no-buffers"),
        pytest.param(lambda m: setattr(m, "bn2", nn.BatchNorm2d(32, affine=False)), id="no-affine"),
        pytest.param(lambda m: setattr(m.bn2, "eps", 0.3), id="large-eps"),
        pytest.param(lambda m: m.bn2.eval() and setattr(m.bn2, "eps", 0.0), id="second-frozen-eps-0"),
    ],
)
def test_modes_of_every_batch_norm(backend, device, edit):
    model = block("projection", stride=2).to(device, memory_format=LAST)
    edit(model)
    x, grad = data(model, (3, 16, 9, 8), device=device)
    check(model, x, grad)


def test_a_frozen_block_leaves_its_buffers_alone(device):
    model = frozen(block("projection", stride=2)).to(device)
    before = {n: b.clone() for n, b in model.named_buffers()}
    x, grad = data(model, (2, 16, 6, 6), device=device)
    model(x).backward(grad)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


NAMES = ["x", "conv1.weight", "bn1.weight", "conv2.weight", "bn2.bias", "downsample.0.weight", "downsample.1.weight"]


@pytest.mark.parametrize("is_frozen", [False, True], ids=["train", "frozen"])
@pytest.mark.parametrize(
    "wanted", [(n,) for n in NAMES] + [("conv1.weight", "bn2.weight"), ("bn1.bias", "x")], ids="+".join
)
def test_any_subset_of_gradients(device, wanted, is_frozen):
    model = block("projection", stride=2).to(device)
    if is_frozen:
        frozen(model)
    x, grad = data(model, (3, 16, 9, 8), device=device)
    check(model, x, grad, wants=lambda name: name in wanted)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda g: g[:1, :1, :1, :1].expand(g.shape), id="expanded"),
        pytest.param(lambda g: torch.stack([g, g], -1)[..., 0], id="strided"),
        pytest.param(lambda g: g.contiguous(memory_format=LAST), id="channels-last"),
        pytest.param(lambda g: g.contiguous(), id="contiguous"),
    ],
)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_in_any_layout(device, memory_format, make):
    model = block("identity").to(device, memory_format=memory_format)
    x, grad = data(model, (3, 16, 5, 4), memory_format=memory_format, device=device)
    ours = check(model, x, make(grad))
    assert ours[1]["x"].stride() == x.stride()


@pytest.mark.parametrize(
    "view", [lambda x: x[:, ::2], lambda x: x[:, :16, 1:, 1:], lambda x: x[:1, :16].expand(3, -1, -1, -1)]
)
def test_input_in_any_layout(device, view):
    model = block("identity").to(device)
    x = view(torch.randn(3, 32, 7, 7, device=device))
    _, grad = data(model, x.shape, device=device)
    check(model, x, grad)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("kind", ["projection", "bottleneck"])
def test_weights_in_another_layout_than_the_input(backend, device, kind, weights):
    """Of the projection's 1x1 weights no layout can be told: its map has to follow the other branch's."""
    other = LAST if weights == torch.contiguous_format else torch.contiguous_format
    model = block(kind).to(device, memory_format=weights)
    x, grad = data(model, (3, 16, 7, 6), memory_format=other, device=device)
    check(model, x, grad)


@pytest.mark.parametrize("padding", [1, 2], ids=["one-pixel-out", "nine-pixels-out"])
def test_maps_of_one_pixel_in_a_contiguous_network(backend, device, padding):
    """Such a map is channels_last as well, which kernels take, and the weights are not."""
    model = block("projection").to(device)
    for conv in (model.conv1, model.downsample[0]):
        conv.padding = padding - (conv is not model.conv1), padding - (conv is not model.conv1)
    x, results = torch.randn(12, 16, 1, 1, device=device), []
    for m in (model, by_modules(model)):
        out = m(x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in m.parameters())])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=2e-3, atol=2e-3 * eager.abs().max().item())


def test_an_empty_batch(device):
    for edit in (lambda m: m, frozen):
        model = edit(block("projection", stride=2)).to(device)
        before = [model.bn1.running_mean.clone(), model.bn2.running_var.clone()]
        x = torch.empty(0, 16, 8, 8, device=device, requires_grad=True)
        y = model(x)
        y.sum().backward()
        assert y.shape == (0, 32, 4, 4) and x.grad.shape == x.shape
        assert all(p.grad.eq(0).all() for p in model.parameters())
        assert torch.equal(model.bn1.running_mean, before[0]) and torch.equal(model.bn2.running_var, before[1])
        assert model.bn1.num_batches_tracked == int(model.bn1.training)


def test_one_value_per_channel_is_torchs_error(device):
    messages = []
    # torch counts the batch before it refuses it; a block that is one op changes nothing.
    for make, counted in ((lambda m: m, 0), (by_modules, 1)):
        model = make(block("projection", stride=2)).to(device)
        before = model.bn1.running_mean.clone()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as caught:
            model(torch.randn(1, 16, 2, 2, device=device))
        messages.append(str(caught.value))
        assert model.bn1.num_batches_tracked == counted and model.bn2.num_batches_tracked == 0
        assert torch.equal(model.bn1.running_mean, before)
    assert messages[0] == messages[1]


def test_double_backward(device):
    results = []
    for make in (lambda m: m, by_modules):
        model = make(block("projection", stride=2)).to(device)
        torch.manual_seed(1)
        x = torch.randn(3, 16, 6, 6, device=device).requires_grad_()
        tensors = [x, *model.parameters()]
        grads = torch.autograd.grad(model(x).square().sum(), tensors, create_graph=True)
        # The bias of the last batch norm gets no gradient: only the sign of the output depends on it.
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), tensors, allow_unused=True))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3 * eager.abs().max().item())


def test_repeats_bit_for_bit(backend, device):
    model = block("projection", stride=2).to(device, memory_format=LAST)
    x, grad = data(model, (3, 16, 9, 8), device=device)
    first, again = (step(model, x, grad, contextlib.nullcontext()) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[part][k], again[part][k]) for part in (1, 2) for k in first[part])


def test_statistics_do_not_cancel(backend, device):
    """A convolution whose output has a mean of 1000 deviations: E[x^2] - E[x]^2 would be 0.5 % off."""
    model = block("identity").to(device, memory_format=LAST)
    x = torch.randn(4, 16, 9, 9, device=device).contiguous(memory_format=LAST)
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.weight[:, :, 1, 1] = torch.eye(16)
        x += 1000.0
        model.bn1.momentum = 1.0
        model(x)
    var = x.double().var((0, 2, 3))
    # A direct sum of one term is exact. Winograd rounds it: 1.1e-5 (measured).
    allowed = 5e-5 if backend == "native" else 2e-6
    assert ((model.bn1.running_var.double() / var) - 1).abs().max() < allowed
