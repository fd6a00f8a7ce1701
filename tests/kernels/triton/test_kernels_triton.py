"""The Triton kernels called directly (no dispatcher, no autograd) against float64, beside torch's own error.

Without a GPU they run in Triton's interpreter, which truncates float32 -> bfloat16 where a GPU rounds: bf16 is only
smoke tested there.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import FORMATS

from resnet_fused.kernels.triton import schedule
from resnet_fused.measure.accuracy import assert_within_budget

pytest.importorskip("triton")
from resnet_fused.kernels.epilogue import RELU, Epilogue, norm_of
from resnet_fused.kernels.shapes import convolution_of
from resnet_fused.kernels.triton import add_relu as add_relu_kernels
from resnet_fused.kernels.triton import bn_relu as bn
from resnet_fused.kernels.triton import bn_relu_backward as bn_backward
from resnet_fused.kernels.triton import bn_stats as statistics
from resnet_fused.kernels.triton import conv_bn_relu as conv

HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
FORMAT = pytest.mark.parametrize("memory_format", FORMATS)
SHAPES = [(3, 65, 5, 7), (2, 64, 9, 9), (2, 3, 1, 5), (5, 100, 1, 1), (1, 1, 4, 4)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
EPS = 1e-5


@pytest.fixture
def randn(device):
    def make(shape, dtype=torch.float32, memory_format=torch.contiguous_format, scale=1.0, shift=0.0):
        values = torch.randn(shape, dtype=torch.float64) * scale + shift
        return values.to(device, dtype).contiguous(memory_format=memory_format)

    return make


@pytest.fixture
def many_slices(monkeypatch):
    """Tiles of 256 elements, 6 programs a reduction: several steps, ragged slices and tails at sizes that are quick."""
    monkeypatch.setattr(schedule, "_REDUCTION_TILE", 256)
    monkeypatch.setattr(schedule, "_REDUCTION_PROGRAMS", 6)


def poisoned(like):
    return torch.full_like(like, float("nan"))


def view(channel_values):
    return channel_values.double().view(1, -1, 1, 1)


def test_add_relu_equals_torch_on_special_values(device):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 1e-8, -1e-8], device=device)
    for dtype in (torch.float32, torch.float16):
        x, residual = (t.flatten() for t in torch.meshgrid(values.to(dtype), values.to(dtype), indexing="ij"))
        out, grad_in, grad = poisoned(x), poisoned(x), torch.arange(1.0, len(x) + 1, device=device, dtype=dtype)
        add_relu_kernels.add_relu(x, residual, out)
        expected = torch.relu(x + residual)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(out.signbit(), expected.signbit() | (out.isnan() & out.signbit()))
        add_relu_kernels.add_relu_backward(grad, out, grad_in)
        assert torch.equal(grad_in, torch.ops.aten.threshold_backward(grad, out, 0))


@HALF
@pytest.mark.parametrize("size", [1, 127, 4099])
def test_add_relu_tails_and_aliasing(randn, size, dtype):
    x, residual = randn((size,), dtype), randn((size,), dtype)
    expected = torch.relu(x + residual)
    add_relu_kernels.add_relu(x, residual, x)
    assert torch.equal(x, expected)


@HALF
@FORMAT
@SHAPE
@pytest.mark.usefixtures("many_slices")
def test_bn_stats(randn, shape, memory_format, dtype):
    c = shape[1]
    x = randn(shape, dtype, memory_format, scale=2.0, shift=3.0)
    start_mean, start_var = randn((c,)), randn((c,)).abs()
    mean, invstd = poisoned(start_mean), poisoned(start_mean)
    running_mean, running_var = start_mean.clone(), start_var.clone()
    statistics.bn_stats(x, mean, invstd, running_mean, running_var, None, 0.1, EPS)

    dims = (0, 2, 3)
    exact, f = x.double(), x.float()
    oracle_invstd = (exact.var(dims, correction=0) + EPS).rsqrt()
    assert_within_budget(mean, f.mean(dims), exact.mean(dims), "mean")
    assert_within_budget(invstd, (f.var(dims, correction=0) + EPS).rsqrt(), oracle_invstd, "invstd")
    eager_mean, eager_var = start_mean.clone(), start_var.clone()
    F.batch_norm(f, eager_mean, eager_var, None, None, True, 0.1, EPS)
    oracle_mean, oracle_var = start_mean.double(), start_var.double()
    F.batch_norm(exact, oracle_mean, oracle_var, None, None, True, 0.1, EPS)
    assert_within_budget(running_mean, eager_mean, oracle_mean, "running_mean")
    assert_within_budget(running_var, eager_var, oracle_var, "running_var")

    again_mean, again_invstd = poisoned(mean), poisoned(mean)
    statistics.bn_stats(x, again_mean, again_invstd, None, None, None, 0.1, EPS)
    assert torch.equal(again_mean, mean) and torch.equal(again_invstd, invstd)


@FORMAT
@pytest.mark.parametrize("ratio", [10.0, 1e3, 1e4])
@pytest.mark.usefixtures("many_slices")
def test_bn_stats_of_a_mean_far_from_zero(randn, memory_format, ratio):
    """E[x^2] - E[x]^2 in float32 is off by 1.5e-5 at mean = 10 std and returns noise at 1e4."""
    x = randn((4, 5, 13, 11), torch.float32, memory_format, shift=ratio)
    mean, invstd = (torch.full((5,), float("nan"), device=x.device) for _ in range(2))
    statistics.bn_stats(x, mean, invstd, None, None, None, 0.1, 0.0)
    var = x.double().var((0, 2, 3), correction=0)
    assert ((invstd.double() ** -2 / var) - 1).abs().max() <= 2e-6
    assert (mean.double() - x.double().mean((0, 2, 3))).abs().max() <= ratio * 2e-7


@pytest.mark.usefixtures("many_slices")
def test_bn_stats_when_the_first_tile_is_an_outlier(randn):
    """The pivot of the first slice is then 1000 std away from everything else."""
    x = randn((8, 4, 8, 8), memory_format=torch.channels_last)
    x[0, :, 0] += 1000.0
    mean, invstd = (torch.full((4,), float("nan"), device=x.device) for _ in range(2))
    statistics.bn_stats(x, mean, invstd, None, None, None, 0.1, 0.0)
    var = x.double().var((0, 2, 3), correction=0)
    assert ((invstd.double() ** -2 / var) - 1).abs().max() <= 2e-6


def test_bn_stats_averages_over_batches_and_rounds_half_buffers(randn, device):
    x = randn((3, 5, 4, 4))
    start = randn((2, 5)).abs().half()
    running_mean, running_var = start.clone()
    scratch = torch.empty(2, 5, device=device)
    statistics.bn_stats(x, *scratch, running_mean, running_var, torch.tensor(4, device=device), 0.9, EPS)
    dims = (0, 2, 3)
    expected_mean = (0.75 * start[0].float() + 0.25 * x.mean(dims)).half()
    expected_var = (0.75 * start[1].float() + 0.25 * x.var(dims)).half()
    torch.testing.assert_close(running_mean, expected_mean, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(running_var, expected_var, rtol=1e-3, atol=1e-6)


@HALF
@FORMAT
@SHAPE
@pytest.mark.parametrize(("training", "residual", "relu"), [(True, True, True), (False, False, False)])
def test_bn_relu_and_its_gradient(randn, shape, memory_format, dtype, training, residual, relu):
    c, m = shape[1], shape[0] * shape[2] * shape[3]
    x, grad = randn(shape, dtype, memory_format, 2.0, 1.0), randn(shape, dtype, memory_format)
    residual = randn(shape, dtype, memory_format) if residual else None
    weight, bias = (randn((c,)), randn((c,))) if training else (None, None)
    mean, var = (x.float().mean((0, 2, 3)), x.float().var((0, 2, 3), correction=0)) if m > 1 else (randn((c,)), None)
    var = randn((c,)).abs() + 0.1 if var is None or not training else var
    var_or_invstd, eps = ((var + EPS).rsqrt(), None) if training else (var, EPS)
    out = poisoned(x)
    norm, activation = norm_of(mean, var_or_invstd, weight, bias, eps), int(relu)
    bn.bn_relu(x, Epilogue(norm, residual, activation), out)

    def forward(x, residual, to):
        y = F.batch_norm(x, to(mean), to(var), to(weight), to(bias), False, 0.0, EPS)
        y = y if residual is None else y + residual
        return y.relu() if relu else y

    def double(t):
        return None if t is None else t.double()

    oracle, eager = forward(double(x), double(residual), double), forward(x, residual, lambda t: t)
    assert_within_budget(out, eager, oracle, "out")

    sum_g, sum_gx = poisoned(mean), poisoned(mean)
    bn_backward.bn_relu_backward_reduce(grad, x, out, norm, sum_g, sum_gx, activation)
    alone = poisoned(mean)
    bn_backward.bn_relu_backward_reduce(grad, None, out, None, alone, None, activation)
    assert torch.equal(alone, sum_g)
    grad_x, grad_residual = poisoned(x), poisoned(x)
    arguments = (x, out, norm, sum_g, sum_gx) if training else (None, out, norm._replace(mean=None), None, None)
    bn_backward.bn_relu_backward_apply(grad, *arguments, grad_x, grad_residual, activation)

    def backward(to):
        g = to(grad) * ~(out <= 0) if relu else to(grad)
        invstd = (to(var) + EPS).rsqrt().view(1, -1, 1, 1)
        xhat = (to(x) - to(mean).view(1, -1, 1, 1)) * invstd
        sums = g.sum((0, 2, 3)), (g * xhat).sum((0, 2, 3))
        scale = invstd if weight is None else invstd * to(weight).view(1, -1, 1, 1)
        if training:
            return *sums, g, scale * (g - (sums[0].view(1, -1, 1, 1) + xhat * sums[1].view(1, -1, 1, 1)) / m)
        return *sums, g, scale * g

    names = ("sum_g", "sum_gx", "grad_residual", "grad_x")
    results = (sum_g, sum_gx, grad_residual, grad_x)
    for name, ours, eager, oracle in zip(names, results, backward(torch.Tensor.float), backward(double), strict=True):
        assert_within_budget(ours, eager.to(ours.dtype), oracle, name)


def test_bn_relu_skips_outputs_that_nobody_wants(randn):
    x = randn((2, 4, 3, 3), memory_format=torch.channels_last)
    var, grad = randn((4,)).abs(), randn(x.shape, memory_format=torch.channels_last)
    only_x, only_residual = poisoned(x), poisoned(x)
    norm = norm_of(None, var, None, None, EPS)
    bn_backward.bn_relu_backward_apply(grad, None, x, norm, None, None, only_x, None, RELU)
    bn_backward.bn_relu_backward_apply(grad, None, x, norm, None, None, None, only_residual, RELU)
    assert torch.equal(only_residual, grad * ~(x <= 0))
    torch.testing.assert_close(only_x, only_residual * (var + EPS).rsqrt().view(1, -1, 1, 1))


@pytest.mark.parametrize("alias", ["x", "residual"])
def test_bn_relu_in_place(randn, alias):
    tensors = {name: randn((2, 5, 4, 3)) for name in ("x", "residual")}
    mean, var = randn((5,)), randn((5,)).abs()
    expected = poisoned(tensors["x"])
    epilogue = Epilogue(norm_of(mean, var, None, None, EPS), tensors["residual"])
    bn.bn_relu(tensors["x"], epilogue, expected)
    bn.bn_relu(tensors["x"], epilogue, tensors[alias])
    assert torch.equal(tensors[alias], expected)


# x, weight, arguments, residual
CONVS = [
    pytest.param((2, 64, 5, 5), (64, 64, 3, 3), {"padding": 1}, True, id="3x3"),
    pytest.param((1, 65, 7, 5), (10, 65, 3, 3), {"stride": 2, "padding": 1}, True, id="ragged-channels"),
    pytest.param((1, 64, 9, 9), (128, 64, 1, 1), {"stride": 2}, False, id="1x1-stride-2"),
    pytest.param((2, 3, 17, 19), (64, 3, 7, 7), {"stride": 2, "padding": 3}, False, id="stem"),
    pytest.param((1, 1, 4, 4), (1, 1, 1, 1), {}, True, id="one-channel"),
    pytest.param((1, 32, 9, 9), (48, 16, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}, True, id="groups-dilation"),
    pytest.param((2, 8, 6, 6), (16, 1, 3, 3), {"padding": 1, "groups": 8}, False, id="depthwise"),
    pytest.param((1, 256, 4, 4), (32, 256, 3, 3), {"padding": 1}, True, id="split-depth"),
    pytest.param((70, 16, 2, 1), (16, 16, 3, 2), {"stride": (1, 2), "padding": (2, 1)}, True, id="images-share-tiles"),
]


def run_conv(randn, x_shape, weight_shape, arguments, residual, dtype, weight_format=torch.channels_last):
    x, k = randn(x_shape, dtype, torch.channels_last), weight_shape[0]
    weight = randn(weight_shape, dtype, weight_format, scale=weight_shape[1:].numel() ** -0.5)
    mean, var, bn_weight, bn_bias = randn((k,)), randn((k,)).abs() + 0.1, randn((k,)), randn((k,))
    norm = {"weight": bn_weight, "bias": bn_bias} if residual else {"weight": None, "bias": None}

    def forward(x, weight, residual, to):
        y = F.conv2d(x, weight, **arguments)
        y = F.batch_norm(y, to(mean), to(var), to(norm["weight"]), to(norm["bias"]), False, 0.0, EPS)
        return y if residual is None else (y + residual).relu()

    def double(t):
        return None if t is None else t.double()

    like = F.conv2d(x.double(), weight.double(), **arguments)
    residual = randn(like.shape, dtype, torch.channels_last) if residual else None
    out = poisoned(like.to(dtype).contiguous(memory_format=torch.channels_last))
    pairs = [(v, v) if isinstance(v := arguments.get(name, d), int) else v
             for name, d in (("stride", 1), ("padding", 0), ("dilation", 1))]  # fmt: skip
    epilogue = Epilogue(norm_of(mean, var, norm["weight"], norm["bias"], EPS), residual, int(residual is not None))
    conv.conv_bn_relu(x, weight, epilogue, out, convolution_of(x, weight, *pairs, arguments.get("groups", 1)))
    oracle = forward(double(x), double(weight), double(residual), double)
    return out, forward(x, weight, residual, lambda t: t), oracle


@HALF
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments", "residual"), CONVS)
def test_conv_bn_relu(randn, x_shape, weight_shape, arguments, residual, dtype, weight_format):
    out, eager, oracle = run_conv(
        randn, x_shape, torch.Size(weight_shape), arguments, residual, dtype, weight_format
    )  # fmt: skip
    assert_within_budget(out, eager, oracle, "conv_bn_relu")


@pytest.mark.parametrize("name", ["x", "residual", "out"])
def test_conv_bn_relu_refuses_maps_that_are_not_channels_last(randn, name):
    maps = {key: randn((2, 16, 4, 4), memory_format=torch.channels_last) for key in ("x", "residual", "out")}
    maps[name] = maps[name].contiguous()
    before = maps["out"].clone()
    norm, weight = norm_of(randn((16,)), randn((16,)).abs(), None, None, EPS), randn((16, 16, 1, 1))
    where = convolution_of(maps["x"], weight, (1, 1), (0, 0), (1, 1), 1)
    with pytest.raises(ValueError, match=rf"^{name} of shape \(2, 16, 4, 4\) has strides \(256, 16, 4, 1\), but"):
        conv.conv_bn_relu(maps["x"], weight, Epilogue(norm, maps["residual"]), maps["out"], where)
    assert torch.equal(maps["out"], before)


def test_conv_bn_relu_with_wide_offsets(randn, monkeypatch):
    monkeypatch.setattr(schedule, "wide_offsets", lambda *_: True)
    shapes = (1, 32, 6, 5), torch.Size((16, 32, 3, 3))
    assert_within_budget(*run_conv(randn, *shapes, {"padding": 1}, True, torch.float32), "conv_bn_relu")


def test_conv_bn_relu_keeps_nan_and_overwrites_its_residual(randn):
    x, weight = randn((1, 16, 4, 4), memory_format=torch.channels_last), randn((16, 16, 1, 1))
    mean, var = randn((16,)), randn((16,)).abs()
    x[0, 3, 1, 2] = float("nan")
    residual = randn(x.shape, memory_format=torch.channels_last)
    expected = F.batch_norm(F.conv2d(x, weight), mean, var, None, None, False, 0.0, EPS).add(residual).relu()
    epilogue = Epilogue(norm_of(mean, var, None, None, EPS), residual)
    conv.conv_bn_relu(x, weight, epilogue, residual, convolution_of(x, weight, (1, 1), (0, 0), (1, 1), 1))
    torch.testing.assert_close(residual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert residual[0, :, 1, 2].isnan().all() and residual.isnan().sum() == 16


def test_bf16_runs(randn):
    """Truncation in the interpreter costs up to one unit in the last place (2^-7) per rounding; a GPU does better."""
    x_shape, weight_shape = (1, 32, 5, 5), torch.Size((16, 32, 3, 3))
    out, _, oracle = run_conv(randn, x_shape, weight_shape, {"padding": 1}, True, torch.bfloat16)
    torch.testing.assert_close(out.double(), oracle, rtol=2**-7, atol=2**-7 * oracle.abs().max().item())
