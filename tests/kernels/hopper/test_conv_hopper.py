"""Statistics in the epilogue of the plane and patch convolutions, and the gradient of the input by them: against float64."""

import pytest
import torch
from cases import activation
from test_conv_plane import pairs
from test_training_kernels import check_statistics

from resnet_fused.measure.accuracy import assert_within_budget, exact

pytest.importorskip("triton")
from resnet_fused.kernels.triton import conv_patch, conv_plane

KERNELS = {"plane": conv_plane, "patch": conv_patch}
LAST = torch.channels_last
EPS = 1e-5


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request, device):
    if request.param == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter truncates to bfloat16 where a GPU rounds")
    return request.param


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "arguments"),
    [
        pytest.param((3, 64, 7, 5), (64, 64, 3, 3), {"padding": 1}, id="3x3"),
        pytest.param((70, 64, 3, 2), (128, 64, 3, 3), {"padding": 1}, id="a-tail-of-images"),
        pytest.param((2, 64, 10, 18), (64, 64, 3, 3), {"padding": 1, "stride": 2}, id="stride-2"),
        pytest.param((2, 64, 4, 6), (64, 64, 1, 1), {"padding": 1}, id="pixels-without-taps"),
    ],
)
def test_statistics(kernel, device, dtype, x_shape, weight_shape, arguments):
    x = activation(x_shape, dtype, device=device)
    weight = activation(weight_shape, dtype, device=device, std=0.1)
    check_statistics(kernel.conv_stats, device, x, weight, arguments)


def test_statistics_of_ragged_channels_and_the_cumulative_average(device, dtype):
    x, weight = (
        activation((1, 72, 9, 11), dtype, device=device),
        activation((40, 72, 3, 3), dtype, device=device, std=0.1),
    )
    check_statistics(conv_patch.conv_stats, device, x, weight, {"padding": 1}, tracked=torch.tensor(7, device=device))


def test_statistics_of_a_mean_far_from_zero(kernel, device, dtype):
    x = activation((2, 64, 5, 5), dtype, device=device, mean=1000.0)
    weight = torch.eye(64, dtype=dtype, device=device)[:, :, None, None].contiguous(memory_format=LAST)
    out, mean, invstd = torch.empty_like(x), torch.empty(64, device=device), torch.empty(64, device=device)
    kernel.conv_stats(x, weight, out, mean, invstd, None, None, None, [1, 1], [0, 0], [1, 1], 1, 0.1, 1e-20)
    assert torch.equal(out, x)
    var = exact(x).var((0, 2, 3), correction=0)
    assert ((invstd.double() ** -2 / var) - 1).abs().max() < 2e-6


# x, weight, arguments, launch of the patch kernel
GRADIENTS = [
    pytest.param((3, 64, 7, 5), (64, 64, 3, 3), {"padding": 1}, {}, id="3x3"),
    pytest.param((70, 64, 2, 3), (128, 64, 3, 3), {"padding": 1}, {"rows": 128}, id="tail-of-a-second-block"),
    pytest.param((2, 64, 8, 10), (128, 64, 3, 3), {"stride": 2, "padding": 1}, {}, id="stride-2"),
    pytest.param((3, 64, 7, 5), (64, 64, 3, 3), {"stride": 2, "padding": 1}, {}, id="stride-2-odd"),
    pytest.param((2, 64, 6, 7), (64, 64, 1, 1), {"stride": 2}, {}, id="projection"),
    pytest.param((1, 64, 7, 9), (64, 64, 3, 2), {"stride": (3, 2), "padding": (2, 1)}, {}, id="stride-3-by-2"),
    pytest.param((1, 64, 9, 6), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, {}, id="dilation-2"),
    pytest.param((1, 64, 9, 8), (64, 64, 3, 3), {"stride": 2, "padding": 2, "dilation": 2}, {}, id="both-2"),
    pytest.param(
        (1, 64, 8, 9), (64, 64, 2, 3), {"stride": 2, "padding": 1, "dilation": 3}, {}, id="stride-2-dilation-3"
    ),
    pytest.param((1, 64, 9, 4), (64, 64, 2, 1), {"stride": (4, 1)}, {}, id="lines-that-nothing-reads"),
    pytest.param((1, 64, 1, 1), (64, 64, 3, 3), {"stride": 2, "padding": 1}, {}, id="one-pixel"),
    pytest.param((2, 64, 3, 3), (64, 64, 1, 1), {"padding": 1}, {}, id="more-outputs-than-inputs"),
]


def gradient(kernel, device, dtype, x_shape, weight_shape, arguments, config=None):
    """(ours, torch's, float64) of the gradient of the input."""
    weight = activation(weight_shape, dtype, device=device, mean=0.0, std=(weight_shape[0] * 9) ** -0.5)
    like = torch.nn.functional.conv2d(torch.empty(x_shape, device=device), weight.float(), **arguments)
    grad = activation(like.shape, dtype, device=device)
    out = torch.empty(x_shape, dtype=dtype, device=device).contiguous(memory_format=LAST).fill_(torch.nan)
    kernel.conv_input_grad(grad, weight, out, *pairs(arguments), 1, config=config)
    eager, oracle = (
        torch.nn.grad.conv2d_input(x_shape, convert(weight), convert(grad), **arguments)
        for convert in (lambda t: t, exact)
    )
    return out, eager, oracle


@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments", "config"), GRADIENTS)
def test_gradient_of_the_input(kernel, device, dtype, x_shape, weight_shape, arguments, config):
    config = config if kernel is conv_patch else None
    out, eager, oracle = gradient(kernel, device, dtype, x_shape, weight_shape, arguments, config)
    assert_within_budget(out, eager, oracle, "the gradient of the input")


def test_gradient_of_ragged_channels(device, dtype):
    out, eager, oracle = gradient(conv_patch, device, dtype, (1, 40, 5, 6), (72, 40, 3, 3), {"padding": 1, "stride": 2})
    assert_within_budget(out, eager, oracle, "the gradient of the input")


@pytest.mark.parametrize(("name", "multiple"), [("plane", 64), ("patch", 8)])
def test_what_is_refused_is_refused_before_any_work(name, multiple):
    grad, weight = (activation((1, 64, 3, 3), torch.float16), activation((64, 60, 3, 3), torch.float16))
    out = torch.full((1, 60, 3, 3), 7.0)
    with pytest.raises(ValueError, match=f"output channels in multiples of {multiple}, not 60"):
        KERNELS[name].conv_input_grad(grad, weight, out, [1, 1], [1, 1], [1, 1], 1)
    assert (out == 7).all()
