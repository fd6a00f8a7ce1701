"""The private ops of the compiled library on CPU tensors, against float64 beside eager's error."""

import itertools
import os
import subprocess
import sys

import isa
import pytest
import torch

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.channels_last, torch.contiguous_format]
# Every remainder of a vector and a block of rows, more channels than a strip (512), several chunks (65536 values),
# planes longer than a segment (2048), one value per channel, one channel, no spatial dimensions.
BOTH = [(2, 64, 5, 7), (2, 3, 9, 5), (2, 65, 3, 3), (2, 600, 3, 3), (2, 48, 28, 28), (2, 2, 70, 70)]
EITHER = [(3, 1, 4, 5), (7, 100, 1, 1), (2, 3, 1, 1), (1, 64, 1, 1), (33, 65), (1, 1, 300, 300), (5, 2000)]
LAYOUTS = [*itertools.product(BOTH, FORMATS), *((shape, torch.contiguous_format) for shape in EITHER)]
CASES = [(shape, dtype, memory_format) for shape, memory_format in LAYOUTS for dtype in DTYPES]
EPS = 1e-5


def placed(values, memory_format, offset=1):
    """`values` in a dense layout, starting `offset` elements after an aligned address, between sentinels."""
    if values.dim() != 4 or memory_format == torch.contiguous_format:
        strides = values.contiguous().stride()
    else:
        strides = torch.empty(values.shape, device="meta").to(memory_format=memory_format).stride()
    room = torch.full((values.numel() + offset + 16,), 77.0, dtype=values.dtype)
    return room.as_strided(values.shape, strides, offset).copy_(values)


def sentinels_intact(t, offset=1):
    room = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return (room[:offset] == 77).all() and (room[offset + t.numel() :] == 77).all()


def per_channel(t):
    return t.transpose(0, 1).flatten(1)


def assert_as_good(ours, eager, exact, terms=None):
    """error(ours) <= 2 * error(eager) + a few eps, in the max norm and the RMS norm of every channel.

    The few eps are of the result in its dtype, and of the `terms` that were added up to it (and may have cancelled) in
    float32.
    """
    assert ours.dtype == eager.dtype and not exact.isnan().any()
    eps = torch.finfo(ours.dtype).eps
    norms = [lambda t: t.abs().max()]
    if exact.dim() > 1:
        norms.append(lambda t: per_channel(t).square().mean(1).sqrt())
    for norm in norms:
        allowed = 2 * norm(eager.double() - exact) + 2 * eps * norm(exact) + 1e-30
        if terms is not None:
            allowed += 2 * torch.finfo(torch.float32).eps * norm(terms)
        error = norm(ours.double() - exact)
        assert (error <= allowed).all(), f"error {error.max():.3g}, allowed {allowed.min():.3g}"


def channel_view(vector, like):
    return vector.double().view(1, -1, *[1] * (like.dim() - 2))


def parameters(channels, dtype=torch.float32):
    return (torch.rand(channels) + 0.5).to(dtype), torch.randn(channels).to(dtype)


@pytest.mark.parametrize("shape, dtype, memory_format", CASES)
def test_add_relu_equals_eager(shape, dtype, memory_format):
    x, residual, grad = (placed(torch.randn(shape).to(dtype), memory_format) for _ in range(3))
    out, grad_in = torch.empty_like(x), placed(torch.zeros(shape, dtype=dtype), memory_format)
    ops.add_relu(x, residual, out)
    assert torch.equal(out, torch.relu(x + residual))
    ops.add_relu_backward(grad, out, grad_in)
    assert torch.equal(grad_in, torch.ops.aten.threshold_backward(grad, out, 0))
    assert sentinels_intact(grad_in)
    ops.add_relu(x, residual, x)  # in place
    assert torch.equal(x, out)


@pytest.mark.parametrize("shape, dtype, memory_format", CASES)
def test_statistics(shape, dtype, memory_format):
    x = placed((torch.randn(shape) * 3 + 2).to(dtype), memory_format)
    channels, count = shape[1], x.numel() // shape[1]
    mean, invstd = torch.full((channels,), 5.0), torch.full((channels,), 5.0)
    running = [None, None]
    if count > 1:
        running = [torch.randn(channels).to(dtype), torch.rand(channels).to(dtype)]
    before = [b if b is None else b.double() for b in running]
    ops.bn_stats(x, mean, invstd, *running, None, 0.3, EPS)
    flat = per_channel(x.double())
    exact_mean, exact_var = flat.mean(1), flat.var(1, correction=0)
    _, eager_mean, eager_invstd = torch.native_batch_norm(x.float(), None, None, None, None, True, 0.3, EPS)
    assert_as_good(mean, eager_mean, exact_mean)
    assert_as_good(invstd, eager_invstd, (exact_var + EPS).rsqrt())
    if running[0] is not None:
        exact_var = exact_var * count / (count - 1)
        for buffer, old, batch in zip(running, before, (exact_mean, exact_var), strict=True):
            exact = 0.7 * old + 0.3 * batch
            assert_as_good(buffer, exact.to(dtype), exact)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_variance_survives_a_large_mean_and_an_outlier(memory_format, ratio):
    x = torch.randn(4, 70, 20, 20) + ratio
    x[:, 1] = ratio  # constant
    x[0, 2, 0, 0] = 1e4 * ratio  # the first value is far from all others
    x = placed(x, memory_format)
    mean, invstd, var = torch.empty(70), torch.empty(70), torch.zeros(70)
    ops.bn_stats(x, mean, invstd, None, var, None, 1.0, 0.0)
    exact = per_channel(x.double()).var(1)
    varies = exact > 0
    assert ((var.double() - exact).abs() <= 2e-6 * exact).all()
    assert invstd[1] == float("inf") and var[1] == 0 and varies.sum() == 69


@pytest.mark.parametrize("memory_format", FORMATS)
def test_one_nan_poisons_its_channel_alone(memory_format):
    x = torch.randn(4, 33, 9, 9)
    x[3, 32, 8, 8] = float("nan")
    mean, invstd = torch.empty(33), torch.empty(33)
    ops.bn_stats(placed(x, memory_format), mean, invstd, None, None, None, 0.1, EPS)
    assert mean.isnan().tolist() == invstd.isnan().tolist() == [False] * 32 + [True]


def test_num_batches_tracked_makes_a_plain_average():
    running_mean, running_var = torch.zeros(8), torch.ones(8)
    batches = torch.zeros((), dtype=torch.int64)
    eager = torch.nn.BatchNorm2d(8, momentum=None)
    for _ in range(3):
        x = torch.randn(4, 8, 3, 3)
        eager(x)
        batches += 1
        ops.bn_stats(x, torch.empty(8), torch.empty(8), running_mean, running_var, batches, 0.9, EPS)
    torch.testing.assert_close(running_mean, eager.running_mean)
    torch.testing.assert_close(running_var, eager.running_var)
    assert batches == 3


@pytest.mark.parametrize("shape, dtype, memory_format", CASES)
@pytest.mark.parametrize(
    "frozen, with_residual, relu",
    [(False, True, True), (True, False, True), (False, False, False), (True, True, False)],
)
def test_bn_relu(shape, dtype, memory_format, frozen, with_residual, relu):
    x = placed((torch.randn(shape) * 2 + 1).to(dtype), memory_format)
    residual = placed(torch.randn(shape).to(dtype), memory_format) if with_residual else None
    out = placed(torch.zeros(shape, dtype=dtype), memory_format)
    weight, bias = parameters(shape[1], dtype if frozen else torch.float32)
    mean, var_or_invstd = torch.randn(shape[1]), torch.rand(shape[1]) + 0.1
    ops.bn_relu(x, mean, var_or_invstd, weight, bias, residual, out, EPS if frozen else None, relu)
    assert sentinels_intact(out)

    invstd = (var_or_invstd.double() + EPS).rsqrt() if frozen else var_or_invstd.double()
    exact = (x.double() - channel_view(mean, x)) * channel_view(invstd, x)
    exact, shift = exact * channel_view(weight, x), channel_view(bias, x)
    terms = exact.abs() + shift.abs()
    exact = exact + shift
    var = var_or_invstd if frozen else (var_or_invstd.double() ** -2).float()
    eager = torch.nn.functional.batch_norm(x, mean, var, weight.float(), bias.float(), eps=EPS if frozen else 1e-30)
    if with_residual:
        exact, eager, terms = exact + residual.double(), eager + residual, terms + residual.double().abs()
    if relu:
        exact, eager = exact.relu(), eager.relu()
    assert_as_good(out, eager, exact, terms)
    ops.bn_relu(x, mean, var_or_invstd, weight, bias, residual, x, EPS if frozen else None, relu)  # in place
    assert torch.equal(x, out)


def test_bn_relu_without_parameters_and_far_from_zero():
    x = torch.randn(2, 24, 6, 6) + 1e4
    mean, invstd = torch.full((24,), 1e4), torch.full((24,), 3.0)
    out = torch.empty_like(x)
    ops.bn_relu(x, mean, invstd, None, None, None, out, None, False)
    assert torch.equal(out, (x - 1e4) * 3)  # exact: both steps are


@pytest.mark.parametrize("shape, dtype, memory_format", CASES)
@pytest.mark.parametrize("relu", [True, False])
def test_backward(shape, dtype, memory_format, relu):
    count = torch.Size(shape).numel() // shape[1]
    x = placed((torch.randn(shape) * 2 + 1).to(dtype), memory_format)
    grad = placed((torch.randn(shape) + 0.5).to(dtype), memory_format)
    out = placed(torch.randn(shape).relu().to(dtype), memory_format) if relu else None
    weight, _ = parameters(shape[1])
    mean, invstd = torch.empty(shape[1]), torch.empty(shape[1])
    ops.bn_stats(x, mean, invstd, None, None, None, 0.1, EPS)

    sum_g, sum_gx = torch.full((shape[1],), 5.0), torch.full((shape[1],), 5.0)
    ops.bn_relu_backward_reduce(grad, x, out, mean, invstd, sum_g, sum_gx, None, relu)
    grad_x, grad_residual = (placed(torch.zeros(shape, dtype=dtype), memory_format) for _ in range(2))
    ops.bn_relu_backward_apply(grad, x, out, mean, invstd, weight, sum_g, sum_gx, grad_x, grad_residual, None, relu)
    assert sentinels_intact(grad_x) and sentinels_intact(grad_residual)

    masked = torch.ops.aten.threshold_backward(grad, out, 0) if relu else grad
    assert torch.equal(grad_residual, masked)
    g, xhat = masked.double(), (x.double() - channel_view(mean, x)) * channel_view(invstd, x)
    exact_g, exact_gx = per_channel(g).sum(1), per_channel(g * xhat).sum(1)
    centred = g - channel_view(exact_g / count, x) - xhat * channel_view(exact_gx / count, x)
    exact_x = channel_view(weight, x) * channel_view(invstd, x) * centred
    eager_x, eager_gx, eager_g = torch.ops.aten.native_batch_norm_backward(
        masked, x, weight, None, None, mean, invstd, True, EPS, [True] * 3
    )
    # Sums that cancel are judged by what was summed, as is the gradient of so few values that it cancels to nothing.
    size_g, size_gx = per_channel(g).abs().sum(1), per_channel(g * xhat).abs().sum(1)
    eps = torch.finfo(torch.float32).eps
    assert ((sum_g - exact_g).abs() <= 2 * (eager_g - exact_g).abs().max() + eps * size_g).all()
    assert ((sum_gx - exact_gx).abs() <= 2 * (eager_gx - exact_gx).abs().max() + 2 * eps * size_gx + 1e-30).all()
    slack = channel_view(weight * invstd, x).abs() * g.abs().amax() * 8 * torch.finfo(torch.float32).eps
    error, eager_error = (grad_x.double() - exact_x).abs(), (eager_x.double() - exact_x).abs()
    assert (error <= 2 * eager_error.max() + torch.finfo(dtype).eps * exact_x.abs() + slack).all()


@pytest.mark.parametrize("shape, dtype, memory_format", CASES)
def test_backward_with_frozen_statistics_and_partial_gradients(shape, dtype, memory_format):
    grad = placed(torch.randn(shape).to(dtype), memory_format)
    out = placed(torch.randn(shape).relu().to(dtype), memory_format)
    weight, _ = parameters(shape[1], dtype)
    var = torch.rand(shape[1]) + 0.1
    masked = torch.ops.aten.threshold_backward(grad, out, 0)
    exact = masked.double() * channel_view(weight.double() * (var.double() + EPS).rsqrt(), grad)
    grad_x, only_residual = torch.empty_like(grad), torch.empty_like(grad)
    ops.bn_relu_backward_apply(grad, None, out, None, var, weight, None, None, grad_x, None, EPS, True)
    assert_as_good(grad_x, exact.to(dtype), exact)
    ops.bn_relu_backward_apply(grad, None, out, None, var, None, None, None, None, only_residual, EPS, True)
    assert torch.equal(only_residual, masked)
    sum_g = torch.empty(shape[1])
    ops.bn_relu_backward_reduce(grad, None, out, None, None, sum_g, None, None, True)
    sums = per_channel(masked.double())
    assert ((sum_g - sums.sum(1)).abs() <= torch.finfo(torch.float32).eps * 4 * sums.abs().sum(1)).all()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_on_every_run_and_for_every_number_of_threads(threads, dtype, memory_format):
    def everything():
        torch.manual_seed(1)
        x, grad = (torch.randn(5, 67, 41, 40).to(dtype).contiguous(memory_format=memory_format) for _ in range(2))
        mean, invstd, sum_g, sum_gx = (torch.empty(67) for _ in range(4))
        running = torch.zeros(67), torch.ones(67)
        out, grad_x = torch.empty_like(x), torch.empty_like(x)
        ops.bn_stats(x, mean, invstd, *running, None, 0.1, EPS)
        ops.bn_relu(x, mean, invstd, None, None, None, out, None, True)
        ops.bn_relu_backward_reduce(grad, x, out, mean, invstd, sum_g, sum_gx, None, True)
        ops.bn_relu_backward_apply(grad, x, out, mean, invstd, None, sum_g, sum_gx, grad_x, None, None, True)
        return mean, invstd, *running, out, sum_g, sum_gx, grad_x

    first = everything()
    for count in (1, 2, 4, 2):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True)), count


def test_the_environment_lowers_the_instruction_set():
    wanted = os.environ.get(isa.VARIABLE, library.cpu_isa())
    assert library.cpu_isa() == min(wanted, library.cpu_isa(), key=isa.SETS.index)


@isa.outermost
@pytest.mark.parametrize("wanted", ["amx", "avx9"])
def test_more_than_this_machine_has_is_not_used_and_info_says_so(wanted):
    if wanted == library.cpu_isa():
        pytest.skip("this machine has it")
    text = subprocess.run(
        [sys.executable, "-m", "resnet_fused", "info"],
        env={**os.environ, isa.VARIABLE: wanted},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{library.cpu_isa()}, not {wanted}: " in text
