"""conv_bn_relu in evaluation, frozen and training, on every backend."""

import pytest
import torch
from cases import CONVOLUTIONS, DTYPES, FORMATS, activation, channels

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference


def weights(shape, dtype, memory_format, device):
    fan_in = shape[1] * shape[2] * shape[3]
    return activation(shape, dtype, memory_format, device, mean=0.0, std=(2 / fan_in) ** 0.5)


@pytest.mark.parametrize("residual", [pytest.param(True, id="residual"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "weight_shape", "conv"), CONVOLUTIONS)
def test_evaluation(backend, numbers_count, device, shape, weight_shape, conv, dtype, residual):
    numbers_count(dtype)
    x = activation(shape, dtype, device=device)
    weight = weights(weight_shape, dtype, torch.contiguous_format, device)
    params = channels(weight_shape[0], device)
    z = torch.nn.functional.conv2d(x, weight, **conv)
    r = activation(z.shape, dtype, device=device) if residual else None
    with dispatch.record() as rows:
        ours = ops.conv_bn_relu(x, weight, *params, r, **conv)
    assert ours.stride() == z.stride() and rows, "a batch norm that wants no gradient is fused with its convolution"
    eager = reference(x, weight, *params, r, **conv)
    oracle = reference(exact(x), exact(weight), *(exact(p) for p in params), exact(r), **conv)
    assert_within_budget(ours, eager, oracle, "out")


@pytest.mark.parametrize("memory_format", FORMATS)
def test_formats_and_no_relu(backend, device, memory_format):
    x = activation((2, 8, 6, 6), memory_format=memory_format, device=device)
    weight, params = weights((16, 8, 3, 3), torch.float32, memory_format, device), channels(16, device)
    ours = ops.conv_bn_relu(x, weight, *params, padding=1, relu=False, eps=1e-3)
    eager = reference(x, weight, *params, padding=1, relu=False, eps=1e-3)
    oracle = reference(exact(x), exact(weight), *(exact(p) for p in params), padding=1, relu=False, eps=1e-3)
    assert_within_budget(ours, eager, oracle, "out")
    assert ours.stride() == eager.stride()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38], ids=str)
def test_special_values_stay_where_the_convolution_puts_them(backend, device, value):
    """Winograd would spread them over its tile, and overflow where the direct sum does not."""
    x = activation((1, 8, 7, 7), device=device)
    x[0, 3, 2, 2] = value
    weight, params = weights((16, 8, 3, 3), torch.float32, torch.channels_last, device), channels(16, device)
    with dispatch.record() as rows:
        ours = ops.conv_bn_relu(x, weight, *params, padding=1)
    eager = reference(x, weight, *params, padding=1)
    if backend == "native" and abs(value) != 3e38:
        assert any("not finite" in choice.reason for _, _, choice in rows), "explain() tells what ran in the end"
    assert torch.equal(ours.isnan(), eager.isnan()) and torch.equal(ours.isinf(), eager.isinf())
    elsewhere = torch.ones_like(x[0, 0], dtype=torch.bool)
    elsewhere[1:4, 1:4] = False
    torch.testing.assert_close(ours[..., elsewhere], eager[..., elsewhere])


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), pytest.param(torch.float16, id="fp16")])
@pytest.mark.parametrize("mode", ["frozen", "frozen-statistics", "train"])
def test_gradients(backend, numbers_count, device, mode, dtype):
    """`frozen`: nothing of the batch norm is trained; `frozen-statistics`: its weight and bias are."""
    numbers_count(dtype)

    def run(function, wide, mask=None):
        torch.manual_seed(3)
        tensors = [
            activation((2, 8, 7, 6), dtype, device=device),
            weights((16, 8, 3, 3), dtype, torch.channels_last, device),
        ]
        params = channels(16, device)
        tensors += [*params[:2], activation((2, 16, 7, 6), dtype, device=device)]
        mean, var = params[2:]
        grad = activation((2, 16, 7, 6), dtype, device=device)
        if wide:
            tensors, mean, var, grad = [exact(t) for t in tensors], exact(mean), exact(var), exact(grad)
        wanted = [t.requires_grad_() for i, t in enumerate(tensors) if mode != "frozen" or i not in (2,)]
        x, weight, bn_weight, bn_bias, residual = tensors
        extra = {} if mask is None else {"relu": False}
        out = function(x, weight, bn_weight, bn_bias, mean, var, residual, padding=1, training=mode == "train", **extra)
        grads = torch.autograd.grad(out if mask is None else out * mask, wanted, grad)
        return out.detach(), grads, (mean, var)

    ours, our_grads, our_stats = run(ops.conv_bn_relu, False)
    eager, eager_grads, _ = run(reference, False)
    oracle, _, exact_stats = run(reference, True)
    assert_within_budget(ours, eager, oracle, "out")
    exact_grads, exact_eager = run(reference, True, ~(ours <= 0))[1], run(reference, True, ~(eager <= 0))[1]
    for g, e, o, oe in zip(our_grads, eager_grads, exact_grads, exact_eager, strict=True):
        assert_within_budget(g, e, o, f"gradient of {tuple(g.shape)}", oracle_eager=oe, channel_dim=0)
        assert g.stride() == e.stride()
    for s, o in zip(our_stats, exact_stats, strict=True):
        torch.testing.assert_close(s.double(), o, rtol=1e-2 if dtype == torch.float16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16")])
def test_autocast(backend, numbers_count, device, dtype):
    numbers_count(dtype)
    x = activation((2, 8, 6, 6), device=device)
    weight, params = weights((16, 8, 3, 3), torch.float32, torch.channels_last, device), channels(16, device)
    oracle = reference(exact(x.to(dtype)), exact(weight.to(dtype)), *(exact(p) for p in params), padding=1)
    with torch.autocast(device, dtype):
        ours, eager = (f(x, weight, *params, padding=1) for f in (ops.conv_bn_relu, reference))
        assert ours.dtype == eager.dtype == dtype
        assert_within_budget(ours, eager, oracle, "out")
        with torch.autocast(device, enabled=False):
            assert ops.conv_bn_relu(x, weight, *params, padding=1).dtype == torch.float32
        w = weight.clone().requires_grad_()
        ops.conv_bn_relu(x, w, *params, padding=1).sum().backward()
    assert w.grad.dtype == torch.float32 and w.grad.abs().sum() > 0


def test_empty_batch(backend, device):
    params = channels(16, device)
    weight = weights((16, 8, 3, 3), torch.float32, torch.channels_last, device)
    assert ops.conv_bn_relu(torch.empty(0, 8, 5, 5, device=device), weight, *params, stride=2).shape == (0, 16, 2, 2)


def test_scale_may_be_huge(backend, device):
    """var = 0: a scale of 316 that folding into float16 weights could not hold (they overflow above 207)."""
    x = activation((1, 8, 5, 5), torch.float16, device=device, std=0.1)
    weight = weights((16, 8, 3, 3), torch.float16, torch.channels_last, device) * 50
    params = [*channels(16, device)[:2], torch.zeros(16, device=device), torch.zeros(16, device=device)]
    ours, eager = (f(x, weight, *params, padding=1) for f in (ops.conv_bn_relu, reference))
    oracle = reference(exact(x), exact(weight), *(exact(p) for p in params), padding=1)
    assert_within_budget(ours, eager, oracle, "out")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda x, w, p: ops.conv_bn_relu(x[:, :7], w, *p), "expected input", id="channels"),
        pytest.param(lambda x, w, p: ops.conv_bn_relu(x, w.double(), *p), "same|type", id="dtype"),
        pytest.param(
            lambda x, w, p: ops.conv_bn_relu(x, w, *(q[:3] for q in p)), "contain 3 elements not 16|16", id="params"
        ),
        pytest.param(lambda x, w, p: ops.conv_bn_relu(x, w, *p, stride=0), "stride|positive", id="stride"),
        pytest.param(lambda x, w, p: ops.conv_bn_relu(x[:, :, :1, :1], w, *p), "[Kk]ernel size", id="too-small"),
    ],
)
def test_errors_are_those_of_torch(device, call, message):
    x, weight = torch.randn(2, 8, 5, 5, device=device), torch.randn(16, 8, 3, 3, device=device)
    with pytest.raises(RuntimeError, match=message):
        call(x, weight, channels(16, device))


def test_tf32_follows_torchs_flag(monkeypatch):
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert dispatch.tf32_allowed() is allowed
        if library.why_absent() is None:
            compiled = dispatch.BACKENDS["cuda"].kernels["conv_bn_relu"]
            assert compiled.args[1] is allowed  # after the library


def test_nothing_derived_from_weights_is_kept(backend, device):
    """Writes that no version counter sees must change the result."""
    x, params = activation((1, 8, 5, 5), device=device), channels(16, device)
    weight = weights((16, 8, 3, 3), torch.float32, torch.channels_last, device)
    before = ops.conv_bn_relu(x, weight, *params)
    weight.data.mul_(2)
    params[3].data.mul_(4)
    after = ops.conv_bn_relu(x, weight, *params)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, reference(x, weight, *params))
    assert resnet_fused.backends()[backend] == "available"
