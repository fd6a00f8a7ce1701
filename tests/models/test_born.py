"""Networks as they are born: every batch norm still has mean 0, variance 1, weight 1 and bias 0.

Such a norm multiplies by 1 / sqrt(1 + eps), a hair less than 1. Sums of two 16-bit values often lie in the middle between two
others. Eager meets these ties, because it rounds before it adds. Without the product rounded, or the scale, every tie is pushed
down.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.kernels.epilogue import norm_of
from resnet_fused.measure import remembered
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.measure.oracle import by_modules
from resnet_fused.ops.bn_relu import reference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def answers(name, dtype, run, size):
    """What `run` computes of a new network in `dtype`, eager, and float64 on the same weights and images."""
    torch.manual_seed(0)
    model = getattr(resnet_fused, name)().eval().to(dtype)
    x = torch.randn(2, 3, size, size).to(dtype)
    with torch.no_grad(), remembered.ignored():
        ours = run(copy.deepcopy(model), x)
        return ours, by_modules(model)(x), by_modules(model).double()(x.double())


RUNS = {
    "live": lambda model, x: model(x),
    "frozen": lambda model, x: resnet_fused.freeze(model.float(), x.float(), dtype=x.dtype)(x),
    "static": lambda model, x: freeze_gpu(model.float(), x.float(), dtype=x.dtype, graph=False)(x),
}


@pytest.mark.parametrize(("run", "dtype"), [(r, d) for r in RUNS for d in DTYPES if (r, d) != ("frozen", "fp16")])
def test_a_network(run, dtype):
    assert_within_budget(*answers("resnet18", DTYPES[dtype], RUNS[run], 64), f"{run}, {dtype}", channel_dim=None)


HALVES = [torch.float16, torch.bfloat16]
EPS = [1e-5, 1e-4, 1e-3]  # torch's own, and others that networks are published with


def maps(shape, dtype, device):
    return torch.randn(shape).to(device, dtype).contiguous(memory_format=torch.channels_last)


def born(channels, dtype, device):
    """Weight, bias, running mean, running variance."""
    return [t.to(device, dtype) for t in (torch.ones(channels), *torch.zeros(2, channels), torch.ones(channels))]


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_the_mean_error_of_a_channel(backend, numbers_count, device, with_residual, dtype, eps):
    numbers_count(dtype)
    x, residual = (maps((2, 4, 112, 112), dtype, device) for _ in range(2))
    arguments = [x, *born(4, dtype, device), residual if with_residual else None]
    ours, eager, oracle = (
        f(*a, eps=eps)
        for f, a in ((ops.bn_relu, arguments), (reference, arguments), (reference, map(exact, arguments)))
    )
    assert_within_budget(ours, eager, oracle, "bn_relu")


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_mean_error_of_two_norms(backend, numbers_count, device, dtype, eps):
    numbers_count(dtype)
    x, z = (maps((2, 4, 112, 112), dtype, device) for _ in range(2))
    weight, bias, mean, var = born(4, dtype, device)
    norm, ours = norm_of(mean, var, weight, bias, eps), torch.empty_like(x)
    dispatch.BACKENDS[backend].kernels["bn_add_bn_relu"](x, norm, z, norm, ours)

    def formula(convert):
        norm = [convert(t) for t in (mean, var, weight, bias)]
        return torch.relu(F.batch_norm(convert(x), *norm, eps=eps) + F.batch_norm(convert(z), *norm, eps=eps))

    assert_within_budget(ours, formula(lambda t: t), formula(exact), "bn_add_bn_relu")


def test_only_a_norm_as_it_is_born_has_its_scale_rounded(backend, device):
    """Each exact sum is 2^-11 beyond an odd float16 number near 1, in the middle before the next; a scale below 1 makes it
    less."""
    if backend == "eager":
        pytest.skip("it rounds the product, not the scale")
    odd, half, hair = 1 + 2**-10, 2**-11, 5e-6
    of = {
        #           x, weight, bias, mean, residual, result
        "born":     (odd, 1 - hair, 0.0, 0.0, half, odd + 2 * half),
        "negative": (-odd, hair - 1, 0.0, 0.0, half, odd + 2 * half),
        "not near": (odd, 1 - 5e-4, 0.0, 0.0, half, odd),
        "bias":     (odd, 1 - hair, 0.25, 0.0, half, odd + 0.25),
        "mean":     (odd, 1 - hair, 0.0, 0.25, half + 0.25, odd),
        "nan":      (odd, float("nan"), 0.0, 0.0, half, float("nan")),
        "infinite": (odd, float("inf"), 0.0, 0.0, half, float("inf")),
    }  # fmt: skip
    x, weight, bias, mean, residual, expected = torch.tensor(list(of.values()), device=device).T.contiguous()
    x, residual = (t.view(1, -1, 1, 1).expand(1, -1, 4, 4).half().contiguous() for t in (x, residual))
    var = torch.full_like(mean, 1 - 1e-5)
    out = ops.bn_relu(x, weight, bias, mean, var, residual, eps=1e-5)
    assert dict(zip(of, out[0, :, 1, 1].tolist(), strict=True)) == pytest.approx(
        dict(zip(of, expected.tolist(), strict=True)), rel=0, abs=0, nan_ok=True
    )


def test_a_deep_network_in_bfloat16():
    """The share of the budget would hide much: its floor is half a unit in the last place."""
    ours, eager, oracle = answers("resnet34", torch.bfloat16, RUNS["live"], 224)
    assert (ours.double() - oracle).norm() <= 1.25 * (eager.double() - oracle).norm()
