"""The CUDA launchers of add_relu and bn_relu on the emulator: what the shared op tests do not reach.

Every vector width of both layouts, several chunks per channel, askew views, and the same bits under every schedule.
"""

import pytest
import torch
from cases import DTYPES, FORMATS, activation
from emulator import build

from resnet_fused.measure.accuracy import assert_within_budget, exact

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
EPS = 1e-5
# channels_last takes vectors of channels, NCHW of H * W: 16 bytes, 8 bytes or single elements, by what divides them.
SHAPES = [
    pytest.param((2, 64, 9, 7), id="wide-channels-odd-plane"),
    pytest.param((3, 20, 6, 6), id="half-vectors"),
    pytest.param((2, 17, 5, 8), id="odd-channels-wide-plane"),
    pytest.param((1, 264, 3, 3), id="two-channel-tiles"),
    pytest.param((2, 256, 5, 3), id="full-channel-tile"),  # constants and partial results share memory only here
    pytest.param((7, 24, 16, 16), id="chunks-of-rows"),
    pytest.param((9, 2, 64, 64), id="chunks-of-planes"),
    pytest.param((5, 3), id="no-plane"),
]


@pytest.fixture(scope="module")
def ops():
    return build.load()


@pytest.fixture(autouse=True)
def _schedule(ops):
    build.configure()


def dense(t, memory_format):
    return t.contiguous(memory_format=memory_format) if t.dim() == 4 else t.contiguous()


def values(shape, dtype, memory_format, **kwargs):
    return activation(shape, dtype, memory_format, **kwargs) if len(shape) == 4 else torch.randn(shape).to(dtype)


def view(stat, like):
    return stat.view([1, -1] + [1] * (like.dim() - 2))


def statistics(ops, x, **buffers):
    mean, invstd = torch.full((2, x.shape[1]), torch.nan)
    ops.bn_stats(
        x, mean, invstd, buffers.get("running_mean"), buffers.get("running_var"), buffers.get("batches"), 0.3, EPS
    )
    return mean, invstd


def all_passes(ops, x, residual, grad, weight, bias):
    """Statistics, forward, sums and gradients, all by the kernels."""
    mean, invstd = statistics(ops, x)
    out, grad_x, grad_residual = (torch.full_like(x, torch.nan) for _ in range(3))
    ops.bn_relu(x, mean, invstd, weight, bias, residual, out, None, True)
    sum_g, sum_gx = torch.full((2, x.shape[1]), torch.nan)
    ops.bn_relu_backward_reduce(grad, x, out, mean, invstd, sum_g, sum_gx, None, True)
    ops.bn_relu_backward_apply(grad, x, out, mean, invstd, weight, sum_g, sum_gx, grad_x, grad_residual, None, True)
    return {"mean": mean, "invstd": invstd, "out": out, "sum_g": sum_g, "sum_gx": sum_gx, "grad_x": grad_x,
            "grad_residual": grad_residual}  # fmt: skip


def formula(x, residual, grad, weight, bias, out=None):
    """The same by torch in the dtype of its arguments, per-channel numbers in at least float32; the mask from `out`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dims = [d for d in range(x.dim()) if d != 1]
    v, w, g = x.to(wide), view(weight, x), grad.to(wide)
    var, mean = torch.var_mean(v, dims, correction=0)
    invstd = (var + EPS).rsqrt()
    xhat = (v - view(mean, x)) * view(invstd, x)
    y = torch.relu(xhat * w + view(bias, x) + residual.to(wide)).to(x.dtype)
    g = torch.where((y if out is None else out) <= 0, 0, g)
    sum_g, sum_gx = g.sum(dims), (g * xhat).sum(dims)
    count = x.numel() / x.shape[1]
    grad_x = w * view(invstd, x) * (g - view(sum_g, x) / count - xhat * view(sum_gx, x) / count)
    return {"mean": mean, "invstd": invstd, "out": y, "sum_g": sum_g, "sum_gx": sum_gx, "grad_x": grad_x.to(x.dtype),
            "grad_residual": g.to(x.dtype)}  # fmt: skip


def assert_accurate(ours, tensors):
    """Within the budget beside `formula` in the tensors' dtype, which on a CPU sums in double or pairwise.

    A float32 sum over n terms may be off by 4 eps of its random part sqrt(n) * rms and of itself; a mean by 4 eps of
    the values, because a batch statistic is only used in differences from them; sum g * xhat by what rounding the
    float32 mean that xhat is made of does to it.
    """
    eager = formula(*tensors)
    wide = [exact(t) for t in tensors]
    oracle, oracle_eager = (formula(*wide, out=o["out"]) for o in (ours, eager))
    x = tensors[0]
    count, eps = x.numel() / x.shape[1], torch.finfo(torch.float32).eps
    dims = [d for d in range(x.dim()) if d != 1]
    g = oracle["grad_residual"]
    xhat = (wide[0] - view(oracle["mean"], x)) * view(oracle["invstd"], x)
    scales = {
        "mean": wide[0].square().mean(dims).sqrt(),
        "sum_g": count**0.5 * g.square().mean(dims).sqrt() + oracle["sum_g"].abs(),
        "sum_gx": count**0.5 * (g * xhat).square().mean(dims).sqrt()
        + oracle["sum_gx"].abs()
        + (oracle["mean"] * oracle["invstd"] * oracle["sum_g"]).abs(),
    }
    for name, result in ours.items():
        if name in scales:
            error, error_eager = ((t[name] - o[name]).abs() for t, o in ((ours, oracle), (eager, oracle_eager)))
            assert (error <= 2 * error_eager + 4 * eps * scales[name]).all(), name
        else:
            assert_within_budget(result, eager[name], oracle[name], name, oracle_eager=oracle_eager[name])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bn_relu_by_formula(ops, shape, dtype, memory_format):
    x, residual, grad = (values(shape, dtype, memory_format) for _ in range(3))
    weight, bias = torch.randn(2, shape[1])
    tensors = x, residual, grad, weight, bias
    assert_accurate(all_passes(ops, *tensors), tensors)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_schedule_does_not_matter(ops, dtype, memory_format):
    """Bit for bit: fixed order of every sum, no dependence on which block or warp comes first."""
    tensors = [values((7, 24, 16, 16), dtype, memory_format) for _ in range(3)]
    weight, bias = torch.randn(2, 24)
    first = None
    for seed in range(4):
        for policy in (0, 1):
            build.configure(seed, policy)
            results = all_passes(ops, *tensors, weight, bias)
            first = first or results
            for name, result in results.items():
                assert torch.equal(result, first[name]), (name, seed, policy)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_any_number_of_multiprocessors(ops, memory_format):
    """1 block per channel tile up to more blocks than there is work; the budget holds for each."""
    tensors = [values((6, 16, 24, 24), torch.float16, memory_format) for _ in range(3)] + list(torch.randn(2, 16))
    for multiprocessors in (1, 2, 132):
        build.configure(multiprocessors=multiprocessors)
        assert_accurate(all_passes(ops, *tensors), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_statistics_and_absent_arguments(ops, dtype):
    x, grad = (values((3, 20, 6, 6), dtype, torch.channels_last) for _ in range(2))
    mean, var = torch.randn(20), torch.rand(20) + 0.1
    out, grad_x = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    ops.bn_relu(x, mean, var, None, None, None, out, EPS, False)
    invstd = (exact(var) + EPS).rsqrt()
    eager = ((x.float() - view(mean, x)) * view((var + EPS).rsqrt(), x)).to(dtype)
    assert_within_budget(out, eager, (exact(x) - view(exact(mean), x)) * view(invstd, x), "out")
    ops.bn_relu_backward_apply(grad, None, None, None, var, None, None, None, grad_x, None, EPS, False)
    eager = (grad.float() * view((var + EPS).rsqrt(), x)).to(dtype)
    assert_within_budget(grad_x, eager, exact(grad) * view(invstd, x), "grad_x")
    sum_g = torch.full((20,), torch.nan)
    ops.bn_relu_backward_reduce(grad, None, None, None, None, sum_g, None, None, False)
    assert_within_budget(sum_g, grad.float().sum((0, 2, 3)), exact(grad).sum((0, 2, 3)), "sum_g")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batches", [None, 1, 7])
def test_running_statistics(ops, dtype, batches):
    x = values((4, 20, 6, 6), torch.float32, torch.channels_last)
    before = [torch.randn(20).to(dtype), (torch.rand(20) + 0.5).to(dtype)]
    mean, var = (t.clone() for t in before)
    counter = None if batches is None else torch.tensor(batches)
    statistics(ops, x, running_mean=mean, running_var=var, batches=counter)
    factor = 0.3 if batches is None else 1 / batches
    for ours, old, batch in zip((mean, var), before, (x.mean((0, 2, 3)), x.var((0, 2, 3))), strict=True):
        eager = (1 - factor) * old.float() + factor * batch
        wide = exact(x).mean((0, 2, 3)) if batch.lt(0).any() else exact(x).var((0, 2, 3))
        assert_within_budget(ours, eager.to(dtype), (1 - factor) * exact(old) + factor * wide, "running statistics")


def askew(t, offset):
    """The same values `offset` elements into a larger allocation: not aligned to 16 bytes."""
    room = torch.full((t.numel() + offset,), torch.nan, dtype=t.dtype)
    moved = room[offset:].as_strided(t.shape, t.stride(), offset)
    return moved.copy_(t)


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_askew_views(ops, dtype, memory_format, offset):
    x, residual, grad = (values((3, 16, 4, 4), dtype, memory_format) for _ in range(3))
    weight, bias = torch.randn(2, 16)
    for moved in ((askew(x, offset), residual, grad), (x, askew(residual, offset), askew(grad, offset))):
        tensors = *moved, weight, bias
        assert_accurate(all_passes(ops, *tensors), tensors)


@pytest.mark.parametrize("size", [1, 7, 8, 1023, 4096, 4096 * 8 + 5, 70001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_relu_of_any_size(ops, dtype, size):
    """Ragged tails of the vectors, of the unrolled loop and of the grid; in place; NaN, infinities and -0.0."""
    x, residual = (torch.randn(1, 1, size).to(dtype) for _ in range(2))
    x.view(-1)[:: max(size // 5, 1)] = torch.tensor([torch.nan, -torch.inf, torch.inf, -0.0])[: 1 + size % 4].repeat(9)[
        : len(x.view(-1)[:: max(size // 5, 1)])
    ]
    residual.view(-1)[-1] = x.view(-1)[-1]
    want = torch.relu(x + residual)
    for offset in (0, 1):
        a, b, out = askew(x, offset), askew(residual, offset), askew(torch.full_like(x, torch.nan), offset)
        ops.add_relu(a, b, out)
        assert_same_bits(out, want)
        grad, grad_in = torch.randn(1, 1, size).to(dtype), torch.full_like(x, torch.nan)
        ops.add_relu_backward(askew(grad, offset), out, grad_in)
        assert_same_bits(grad_in, torch.where(want <= 0, 0, grad))
        ops.add_relu(a, b, a)
        assert_same_bits(a, want)


def assert_same_bits(ours, want):
    integer = torch.int32 if want.dtype == torch.float32 else torch.int16
    assert torch.equal(ours.isnan(), want.isnan())
    assert ((ours.view(integer) == want.view(integer)) | want.isnan()).all()
