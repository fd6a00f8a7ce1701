"""The kernels that only training needs, called directly: convolution with statistics, two batch norms in one pass, the
gradient of a sum, statistics over processes."""

import pytest
import torch
import torch.nn.functional as F
from cases import CONVOLUTIONS, DTYPES, FORMATS, activation, channels

from resnet_fused import dispatch
from resnet_fused.kernels.epilogue import norm_of
from resnet_fused.kernels.shapes import convolution_of
from resnet_fused.kernels.triton import schedule
from resnet_fused.measure.accuracy import assert_within_budget, exact

EPS = 1e-3
LAST = torch.channels_last


def kernel(backend, op):
    """The launcher of a backend."""
    return dispatch.BACKENDS[backend].kernels[op]


def wide(x, mean, var_or_invstd, weight, bias, eps):
    """bn(x) in the arithmetic of the tensors given."""
    view = [1, -1, *[1] * (x.dim() - 2)]
    invstd = var_or_invstd if eps is None else (var_or_invstd + eps).rsqrt()
    y = (x - mean.view(view)) * invstd.view(view)
    y = y if weight is None else y * weight.view(view)
    return y if bias is None else y + bias.view(view)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("eps", [(None, None), (None, EPS), (EPS, None)], ids=["batch", "first", "second"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_batch_norms_in_one_pass(backend, numbers_count, device, dtype, memory_format, eps, affine):
    numbers_count(dtype)
    shape = (3, 37, 5, 6)
    x, z = (activation(shape, dtype, memory_format, device) for _ in range(2))
    norms = []
    for e in eps:
        weight, bias, mean, var = channels(shape[1], device)
        norms.append((mean, var, weight if affine else None, bias if affine else None, e))
    out = torch.full_like(x, float("nan"))
    kernel(backend, "bn_add_bn_relu")(x, norm_of(*norms[0]), z, norm_of(*norms[1]), out)
    oracle = torch.relu(wide(exact(x), *map(_exact, norms[0])) + wide(exact(z), *map(_exact, norms[1])))
    y = wide(x.float(), *norms[0]).to(dtype)  # eager rounds after each batch norm
    reference = torch.relu(y + wide(z.float(), *norms[1]).to(dtype))
    assert_within_budget(out, reference, oracle, "out")
    alias = z.clone()
    kernel(backend, "bn_add_bn_relu")(x, norm_of(*norms[0]), alias, norm_of(*norms[1]), alias)
    assert torch.equal(alias, out)


def _exact(value):
    return exact(value) if isinstance(value, torch.Tensor) else value


def test_two_batch_norms_keep_nan_and_the_sign_of_zero(backend, device):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0], device=device)
    x, z = (t.flatten().view(1, 1, -1, 1) for t in torch.meshgrid(values, values, indexing="ij"))
    zero, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    norm, out = norm_of(zero, one, None, None, None), torch.empty_like(x)
    kernel(backend, "bn_add_bn_relu")(x, norm, z, norm, out)
    torch.testing.assert_close(out, torch.relu(x + z), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_gradients_are_added_where_they_are_read(backend, numbers_count, device, dtype, memory_format, relu):
    """Bit for bit what one addition in float32, rounded once, and then the same pass over the sum gives."""
    numbers_count(dtype)
    shape = (3, 40, 5, 6)
    grad, grad2, x, out = (activation(shape, dtype, memory_format, device) for _ in range(4))
    weight, _, mean, var_or_invstd = channels(shape[1], device)
    together, mask = grad + grad2, out if relu else None
    g = torch.ops.aten.threshold_backward(together, out, 0) if relu else together
    reduce, apply = (kernel(backend, f"bn_relu_backward_{op}") for op in ("reduce", "apply"))

    def reduced(grad, grad2, masked):
        sums = torch.full((2, shape[1]), float("nan"), device=device)
        reduce(grad, x, mask, norm_of(mean, var_or_invstd, weight, None, None), *sums, int(relu), grad2, masked)
        return sums

    expected, masked = reduced(together, None, None), torch.full_like(x, float("nan"))
    assert torch.equal(reduced(grad, grad2, masked), expected) and torch.equal(masked, g)
    for first, second in ((grad.clone(), grad2), (grad, grad2.clone())):  # in the memory of either
        mine = first if first is not grad else second
        assert torch.equal(reduced(first, second, mine), expected) and torch.equal(mine, g)
    masked.fill_(float("nan"))
    assert torch.equal(reduced(together, None, masked), expected) and torch.equal(masked, g)

    for eps in (None, EPS):
        wanted = []
        for grads in ((together, None), (grad, grad2)):
            grad_x, residual = (torch.full_like(x, float("nan")) for _ in range(2))
            norm = norm_of(mean, var_or_invstd, weight, None, eps)
            apply(grads[0], x, mask, norm, *expected, grad_x, residual, int(relu), grads[1])
            assert torch.equal(residual, g)
            wanted.append(grad_x)
        assert torch.equal(*wanted)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param((30, 30), id="even"),
        pytest.param((5, 1, 0, 17), id="uneven"),
        pytest.param((0, 0, 2), id="empty-first"),
        pytest.param((1, 1), id="one-each"),
        pytest.param(tuple(range(1, 40)), id="39-processes"),
    ],
)
def test_statistics_over_processes(backend, device, counts):
    size, offset = 37, 1000.0
    values = [torch.randn(n, size, dtype=torch.float64) + offset + r for r, n in enumerate(counts)]
    parts = torch.full((len(counts), 2 * size + 1), float("nan"))
    for part, own in zip(parts, values, strict=True):
        part[-1] = len(own)
        if len(own):
            part[:size] = own.mean(0)
        if len(own) > 1:  # else NaN, as the kernels have it
            part[size:-1] = own.var(0)
    mean, invstd, var, share = torch.full((4, size), float("nan"), device=device)
    kernel(backend, "bn_stats_merge")(parts.to(device), mean, invstd, var, share, float(counts[-1]), EPS)
    sent, n = parts.double().nan_to_num(), torch.tensor(counts).double()[:, None]
    total = n.sum()
    exact_mean = (n * sent[:, :size]).sum(0) / total
    m2 = ((n - 1).clamp(min=0) * sent[:, size:-1] + n * (sent[:, :size] - exact_mean).square()).sum(0)
    for ours, oracle in (
        (mean, exact_mean), (var, m2 / (total - 1)), (invstd, (m2 / total + EPS).rsqrt()), (share, n[-1].expand(size) / total)
    ):  # fmt: skip
        torch.testing.assert_close(ours.cpu().double(), oracle, rtol=2e-6, atol=0)


@pytest.fixture(params=["triton", "emulator"])
def conv_stats(request, device):
    if device == "cuda":
        name = "cuda" if request.param == "emulator" else "triton"
    else:
        name = request.param
        if name == "emulator":
            from emulator import as_backend

            as_backend.register()
    if (why := dispatch.why_not_here(dispatch.BACKENDS[name])) is not None:
        pytest.skip(f"backend {name}: {why}")
    return dispatch.BACKENDS[name].kernels["conv_stats"]


def pairs(arguments):
    values = (arguments.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    return [list(v) if isinstance(v, tuple) else [v, v] for v in values]


def check_statistics(conv_stats, device, x, weight, arguments, momentum=0.1, tracked=None):
    like = F.conv2d(exact(x), exact(weight), **arguments)
    out = torch.full_like(like, float("nan"), dtype=x.dtype).contiguous(memory_format=LAST)
    k = weight.shape[0]
    mean, invstd = torch.full((2, k), float("nan"), device=device)
    running = [torch.randn(k, device=device), torch.rand(k, device=device) + 0.5]
    before = [exact(t) for t in running]
    convolution = convolution_of(x, weight, *pairs(arguments), arguments.get("groups", 1))
    conv_stats(x, weight, out, mean, invstd, *running, tracked, convolution, momentum, EPS)
    assert_within_budget(out, F.conv2d(x, weight, **arguments), like, "out")
    stored = exact(out).transpose(0, 1).flatten(1)
    m, var = stored.mean(1), stored.var(1, correction=0)
    assert ((mean - m).abs() <= 2.0**-21 * (m.abs() + var.sqrt())).all()
    assert ((invstd * (var + EPS).sqrt() - 1).abs() <= 2.0**-20).all()
    factor = momentum if tracked is None else 1 / tracked.item()
    for got, old, batch in zip(running, before, (m, stored.var(1)), strict=True):
        torch.testing.assert_close(exact(got), (1 - factor) * old + factor * batch, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments"), CONVOLUTIONS)
def test_convolution_with_statistics(conv_stats, device, x_shape, weight_shape, arguments, dtype):
    x = activation(x_shape, dtype, device=device)
    weight = activation(weight_shape, dtype, device=device, std=0.1)
    check_statistics(conv_stats, device, x, weight, arguments)


def test_many_tiles_a_deep_reduction_and_the_cumulative_average(conv_stats, device):
    """Tiles that end in the middle, and a depth that evaluation would split: statistics need finished sums."""
    x, weight = activation((3, 96, 11, 7), device=device), activation((40, 96, 3, 3), device=device, std=0.05)
    assert schedule.conv(231, 40, 96, 9, 1, 4, "ieee").splits > 1
    check_statistics(conv_stats, device, x, weight, {"padding": 1}, tracked=torch.tensor(7, device=device))
    assert schedule.conv(231, 40, 96, 9, 1, 4, "ieee").grid[0] > 1


def test_statistics_of_a_mean_far_from_zero(conv_stats, device):
    x = activation((2, 16, 9, 9), device=device, mean=1000.0)
    weight = torch.zeros(16, 16, 1, 1, device=device)
    weight[:, :, 0, 0] = torch.eye(16)
    out, mean, invstd = torch.empty_like(x), torch.empty(16, device=device), torch.empty(16, device=device)
    convolution = convolution_of(x, weight, (1, 1), (0, 0), (1, 1), 1)
    conv_stats(x, weight, out, mean, invstd, None, None, None, convolution, 0.1, 1e-20)
    assert torch.equal(out, x)
    var = exact(x).var((0, 2, 3), correction=0)
    assert ((invstd.double() ** -2 / var) - 1).abs().max() < 2e-6


@pytest.mark.usefixtures("own_cache")  # what another test tuned would be looked up for a GPU that is not there
def test_the_dispatcher_takes_the_kernel_where_there_are_enough_tiles(monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS, "triton", dispatch.BACKENDS["triton"]._replace(why_not=lambda device: None))
    without = dispatch.BACKENDS["cuda"]._replace(why_not=lambda device: "no compiled part")
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", without)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr("resnet_fused.dispatch.choice._measured", lambda *_: None)
    monkeypatch.setattr("resnet_fused.measure.remembered._tables", {})
    monkeypatch.setattr("resnet_fused.measure.machine.identity", lambda device: {"device": "none", "arch": "sm_90"})

    class OnCuda:
        """A tensor as far as the dispatcher looks; no GPU is here."""

        def __init__(self, *shape):
            self.meta = torch.empty(shape, device="meta").contiguous(memory_format=LAST)
            self.device = torch.device("cuda")

        def __getattr__(self, name):
            return getattr(self.meta, name)

    weight, where = OnCuda(64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    big, small = OnCuda(256, 64, 56, 56), OnCuda(1, 64, 7, 7)

    def choose(x):
        return dispatch.choose_conv_stats(x, weight, convolution_of(x, weight, *where))

    assert choose(big).backend == "triton"
    choice = choose(small)
    assert choice.backend == "torch" and choice.reason.startswith("1 tiles are too few")
    with dispatch.backend("triton"):
        assert choose(small).backend == "triton"
    with dispatch.backend("torch"):
        assert choose(big).backend == "torch"
