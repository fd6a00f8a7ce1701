"""bn_relu in training and evaluation: values, gradients, running statistics, on every backend."""

import pytest
import torch
from cases import ACTIVATIONS, DTYPES, FORMATS, activation, channels

from resnet_fused import ops, strict
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.bn_relu import reference


def run(function, x, params, residual, grad, relu_mask=None, **kwargs):
    """(out, gradients, running statistics) of `function`; with `relu_mask` the ReLU is that mask instead."""
    x, residual = (None if t is None else t.detach().clone().requires_grad_() for t in (x, residual))
    weight, bias = (None if t is None else t.detach().clone().requires_grad_() for t in params[:2])
    mean, var = (t.clone() for t in params[2:])
    if relu_mask is not None:
        kwargs["relu"] = False
    out = function(x, weight, bias, mean, var, residual, **kwargs)
    if relu_mask is not None:
        out = out * relu_mask
    wanted = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    grads = torch.autograd.grad(out, list(wanted.values()), grad)
    return out.detach(), dict(zip(wanted, grads, strict=True)), {"running_mean": mean, "running_var": var}


def check(x, params, residual, grad, **kwargs):
    ours, our_grads, our_stats = run(ops.bn_relu, x, params, residual, grad, **kwargs)
    eager, eager_grads, eager_stats = run(reference, x, params, residual, grad, **kwargs)
    wide = (exact(x), tuple(exact(p) for p in params), exact(residual), exact(grad))
    exact_out, _, exact_stats = run(reference, *wide, **kwargs)
    assert_within_budget(ours, eager, exact_out, "out")
    assert ours.stride() == eager.stride()
    masked = kwargs.get("relu", True)
    _, exact_grads, _ = run(reference, *wide, **kwargs, relu_mask=~(ours <= 0) if masked else None)
    _, exact_eager, _ = run(reference, *wide, **kwargs, relu_mask=~(eager <= 0) if masked else None)
    for name, g in our_grads.items():
        assert_within_budget(g, eager_grads[name], exact_grads[name], f"grad_{name}", oracle_eager=exact_eager[name])
    assert our_grads["x"].stride() == eager_grads["x"].stride()
    for name, s in our_stats.items():
        # An infinite value makes torch's mean infinite and a shifted or merged one NaN: both tell the same.
        s = torch.where(s.isfinite(), s, eager_stats[name])
        assert_within_budget(s, eager_stats[name], exact_stats[name], name)


@pytest.mark.parametrize("training", [pytest.param(True, id="train"), pytest.param(False, id="eval")])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ACTIVATIONS)
def test_forward_and_backward(backend, numbers_count, device, shape, dtype, memory_format, training):
    numbers_count(dtype)
    x = activation(shape, dtype, memory_format, device)
    residual = activation(shape, dtype, memory_format, device)
    grad = activation(shape, dtype, memory_format, device)
    check(x, channels(shape[1], device), residual, grad, training=training)


@pytest.mark.parametrize("training", [pytest.param(True, id="train"), pytest.param(False, id="eval")])
@pytest.mark.parametrize("relu", [pytest.param(True, id="relu"), pytest.param(False, id="no-relu")])
def test_without_residual_weight_or_bias(backend, device, relu, training):
    x, grad = activation((3, 20, 4, 5), device=device), activation((3, 20, 4, 5), device=device)
    weight, bias, mean, var = channels(20, device)
    check(x, (weight, bias, mean, var), None, grad, training=training, relu=relu)
    check(x, (None, None, mean, var), x * 0.5, grad, training=training, relu=relu)
    check(x, (weight, None, mean, var), None, grad, training=training, relu=relu)


def test_parameters_in_the_dtype_of_x(backend, numbers_count, device):
    for dtype in (torch.float16, torch.bfloat16):
        numbers_count(dtype)
        x, grad = activation((3, 24, 5, 5), dtype, device=device), activation((3, 24, 5, 5), dtype, device=device)
        params = channels(24, device, dtype)
        for training in (True, False):
            check(x, params, None, grad, training=training)


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e4], ids=lambda r: f"mean-over-std-{r:g}")
def test_statistics_do_not_cancel(backend, device, ratio):
    """E[x^2] - E[x]^2 in float32 is 0.5 % off at a mean of 1000 standard deviations, and negative at 10,000."""
    x = activation((4, 33, 13, 11), device=device, mean=ratio, std=1.0)
    mean, var = torch.zeros(33, device=device), torch.ones(33, device=device)
    ops.bn_relu(x, None, None, mean, var, training=True, momentum=1.0)
    exact_var = exact(x).var((0, 2, 3))
    assert ((var.double() - exact_var) / exact_var).abs().max() < 2e-6 * max(1.0, ratio / 1e4)
    assert ((mean.double() - exact(x).mean((0, 2, 3))) / ratio).abs().max() < 2e-7


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda x: x[0, 1, 2, 3].fill_(float("nan")), id="nan"),
        pytest.param(lambda x: x[0, 1, 2, 3].fill_(float("inf")), id="inf"),
        pytest.param(lambda x: x[:, 2].fill_(0.7), id="constant-channel"),
        pytest.param(lambda x: x[1, 3, 0, 0].fill_(1e4), id="outlier"),
    ],
)
def test_bad_values_stay_in_their_channel(backend, device, spoil):
    x = activation((3, 8, 5, 6), device=device)
    spoil(x)
    for training in (True, False):
        check(x, channels(8, device), None, torch.ones_like(x), training=training)


def test_cumulative_average_over_several_steps(backend, device):
    bn = torch.nn.BatchNorm2d(6, momentum=None).to(device)
    mean, var, steps = torch.zeros(6, device=device), torch.ones(6, device=device), torch.tensor(0, device=device)
    for _ in range(4):
        x = activation((3, 6, 4, 4), device=device)
        steps += 1
        out = ops.bn_relu(
            x, bn.weight, bn.bias, mean, var, training=True, momentum=None, num_batches_tracked=steps, eps=bn.eps
        )
        torch.testing.assert_close(out, torch.relu(bn(x)))
    torch.testing.assert_close((mean, var, steps), (bn.running_mean, bn.running_var, bn.num_batches_tracked))


def test_running_statistics_bump_their_version(backend, device):
    mean, var = torch.zeros(4, device=device), torch.ones(4, device=device)
    before = mean._version, var._version
    ops.bn_relu(torch.randn(2, 4, 3, 3, device=device), None, None, mean, var, training=True)
    assert mean._version > before[0] and var._version > before[1]


def test_repeats_bit_for_bit(backend, device):
    x = activation((4, 40, 9, 9), device=device)
    params = channels(40, device)
    first = run(ops.bn_relu, x, params, None, torch.ones_like(x), training=True)
    again = run(ops.bn_relu, x, params, None, torch.ones_like(x), training=True)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][k], again[1][k]) for k in first[1])
    assert all(torch.equal(first[2][k], again[2][k]) for k in first[2])


def test_strides_and_empty_batches(backend, device):
    params = channels(6, device)
    big = activation((4, 12, 7, 7), device=device)
    for x in (big[:, ::2], big[:, :6, 1:, 1:], big[:1, :6].expand(4, 6, 7, 7)):
        for training in (True, False):
            check(x, params, None, torch.randn(x.shape[2:], device=device).expand_as(x), training=training)
    weight, bias, mean, var = (p.clone().requires_grad_(i < 2) for i, p in enumerate(params))
    x = torch.empty(0, 6, 4, 4, device=device, requires_grad=True)
    ops.bn_relu(x, weight, bias, mean, var, training=True).sum().backward()
    assert x.grad.shape == x.shape and weight.grad.eq(0).all() and bias.grad.eq(0).all()
    assert torch.equal(mean, params[2]) and torch.equal(var, params[3])


def test_two_dimensional_input(backend, device):
    check(
        torch.randn(7, 12, device=device), channels(12, device), None, torch.randn(7, 12, device=device), training=True
    )


def test_errors_are_those_of_torch(device):
    weight, bias, mean, var = channels(4, device)
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training, got input size"):
        ops.bn_relu(torch.randn(1, 4, 1, 1, device=device), weight, bias, mean, var, training=True)
    with strict(False), pytest.raises(RuntimeError, match="running_mean should contain 3 elements not 4"):
        ops.bn_relu(torch.randn(2, 3, 2, 2, device=device), None, None, mean, var)


def test_only_what_is_wanted_gets_a_gradient(backend, device):
    x = activation((2, 8, 4, 4), device=device)
    params = channels(8, device)
    for training in (True, False):
        for wanted in range(1, 16):
            tensors = [t.detach().clone() for t in (x, *params[:2], x)]
            for i, t in enumerate(tensors):
                t.requires_grad_(bool(wanted >> i & 1))
            buffers = [p.clone() for p in params[2:]]
            ops.bn_relu(*tensors[:3], *buffers, tensors[3], training=training).sum().backward()
            assert [t.grad is not None for t in tensors] == [bool(wanted >> i & 1) for i in range(4)]


def test_double_backward_equals_eager(device):
    for training in (True, False):
        results = []
        for function in (ops.bn_relu, reference):
            torch.manual_seed(1)
            x = activation((3, 5, 4, 4), device=device).requires_grad_()
            weight, bias, mean, var = channels(5, device)
            weight.requires_grad_()
            out = function(x, weight, bias, mean, var, training=training)
            (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(g.square().sum(), (x, weight)))
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager, rtol=2e-4, atol=1e-3)
