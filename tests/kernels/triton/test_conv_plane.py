"""The plane convolution in Triton, called directly, against float64 beside torch's own error; and when it is chosen.

Without a GPU it runs in Triton's interpreter, whose bfloat16 is not a GPU's: those numbers count on a GPU only.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import activation, channels

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference

pytest.importorskip("triton")
from resnet_fused.kernels.triton import conv_plane as kernel

EPS = 1e-5
# x, weight, arguments, residual, launch
CONVS = [
    pytest.param((5, 64, 4, 4), (64, 64, 3, 3), {"padding": 1}, True, {}, id="3x3"),
    pytest.param((70, 128, 3, 3), (64, 128, 3, 3), {"padding": 1}, True, {}, id="tail-of-a-second-block"),
    pytest.param((130, 64, 2, 2), (256, 64, 3, 3), {"padding": 1}, False, {}, id="two-by-two-tiles"),
    pytest.param((3, 64, 7, 5), (128, 64, 3, 3), {"stride": 2, "padding": 1}, True, {}, id="stride-2"),
    pytest.param((3, 64, 6, 6), (128, 64, 3, 3), {"stride": 2, "padding": 1}, False, {"block_k": 64}, id="narrow"),
    pytest.param((3, 64, 4, 4), (64, 64, 1, 1), {"stride": 2}, False, {}, id="projection"),
    pytest.param((2, 64, 6, 5), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, True, {}, id="dilation-2"),
    pytest.param((2, 64, 2, 2), (64, 64, 1, 1), {"padding": 1}, True, {}, id="pixels-without-taps"),
    pytest.param((2, 192, 1, 1), (64, 192, 3, 3), {"padding": 1}, True, {"num_stages": 4}, id="one-pixel"),
]


def pairs(arguments):
    defaults = (("stride", 1), ("padding", 0), ("dilation", 1))
    return [[value, value] if isinstance(value := arguments.get(name, d), int) else value for name, d in defaults]


def run(x, weight, params, residual, arguments, relu, config=None):
    bn_weight, bn_bias, mean, var = params
    like = F.conv2d(x[:1].float(), weight.float(), **arguments)
    shape = (len(x), *like.shape[1:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=torch.channels_last)
    out.fill_(float("nan"))
    kernel.conv_bn_relu(
        x, weight, mean, var, bn_weight, bn_bias, residual, out, *pairs(arguments), 1, EPS, relu, config=config
    )
    return out


def make(device, dtype, x_shape, weight_shape, residual, arguments):
    x = activation(x_shape, dtype, device=device)
    weight = activation(weight_shape, dtype, device=device, mean=0.0, std=weight_shape[1:].numel() ** -0.5)
    params = channels(weight_shape[0], device)
    like = F.conv2d(x.float(), weight.float(), **arguments)
    return x, weight, params, activation(like.shape, dtype, device=device) if residual else None


def check(ours, x, weight, params, residual, arguments, relu):
    eager = reference(x, weight, *params, residual, relu=relu, **arguments)
    wide = [exact(t) for t in (x, weight, *params, residual)]
    assert_within_budget(ours, eager, reference(*wide, relu=relu, **arguments), "out")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request, device):
    if request.param == torch.bfloat16 and device == "cpu":
        pytest.skip("Triton's interpreter truncates to bfloat16 where a GPU rounds")
    return request.param


@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments", "residual", "config"), CONVS)
def test_against_float64(device, dtype, x_shape, weight_shape, arguments, residual, config):
    x, weight, params, r = make(device, dtype, x_shape, torch.Size(weight_shape), residual, arguments)
    ours = run(x, weight, params, r, arguments, residual, config)
    check(ours, x, weight, params, r, arguments, residual)
    assert torch.equal(ours, run(x, weight, params, r, arguments, residual, config)), "the same bits again"


def test_parts_of_larger_tensors(device, dtype):
    """Real strides: every second image, without its border; the output has gaps too."""
    big, weight, params, _ = make(device, dtype, (10, 64, 6, 7), torch.Size((64, 64, 3, 3)), False, {"padding": 1})
    x = big[::2, :, 1:-1, 1:-1]
    out = torch.full((10, 4, 5, 64), float("nan"), dtype=dtype, device=device).permute(0, 3, 1, 2)
    bn_weight, bn_bias, mean, var = params
    kernel.conv_bn_relu(x, weight, mean, var, bn_weight, bn_bias, None, out[::2], [1, 1], [1, 1], [1, 1], 1, EPS, True)
    check(out[::2], x.contiguous(memory_format=torch.channels_last), weight, params, None, {"padding": 1}, True)
    assert out[1::2].isnan().all(), "nothing was written between"


def test_memory_that_the_hardware_cannot_copy_from(device, dtype):
    """A tensor that begins 2 bytes past a multiple of 16."""
    x, weight, params, _ = make(device, dtype, (2, 64, 3, 3), torch.Size((64, 64, 3, 3)), False, {"padding": 1})
    storage = torch.empty(x.numel() + 1, dtype=dtype, device=device)
    shifted = storage[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert shifted.data_ptr() % 16 == 2
    check(run(shifted, weight, params, None, {"padding": 1}, True), x, weight, params, None, {"padding": 1}, True)


def test_nan_stays_where_the_convolution_puts_it_and_the_residual_is_overwritten(device, dtype):
    x, weight, params, r = make(device, dtype, (2, 64, 4, 4), torch.Size((64, 64, 3, 3)), True, {"padding": 1})
    x[0, 3, 0, 0] = float("nan")
    bn_weight, bn_bias, mean, var = params
    expected = reference(x, weight, *params, r, padding=1)
    kernel.conv_bn_relu(x, weight, mean, var, bn_weight, bn_bias, r, r, [1, 1], [1, 1], [1, 1], 1, EPS, True)
    assert torch.equal(r.isnan(), expected.isnan()) and r.isnan().sum() == 4 * 64
    torch.testing.assert_close(r, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_no_parameters(device, dtype):
    """Batch norm without weight and bias."""
    x, weight, params, _ = make(device, dtype, (2, 64, 2, 2), torch.Size((64, 64, 1, 1)), False, {})
    params = (None, None, *params[2:])
    check(run(x, weight, params, None, {}, True), x, weight, params, None, {}, True)


def test_what_is_refused_is_refused_before_any_work(device):
    x, weight, params, _ = make(device, torch.float16, (2, 65, 2, 2), torch.Size((64, 65, 1, 1)), False, {})
    with pytest.raises(ValueError, match="input channels in multiples of 64, not 65"):
        run(x, weight, params, None, {}, True)


@pytest.fixture
def plane_backend():
    if (why := dispatch.BACKENDS["triton_plane"].why_not()) is not None:
        pytest.skip(why)
    with resnet_fused.backend("triton_plane"):
        yield


def test_the_op_takes_it_where_asked_and_says_where_not(device, dtype, plane_backend):
    arguments = {"padding": 1}
    x, weight, params, r = make(device, dtype, (3, 64, 3, 3), torch.Size((64, 64, 3, 3)), True, arguments)
    with dispatch.record() as rows:
        ours = ops.conv_bn_relu(x, weight, *params, r, **arguments)
        check(ours, x, weight, params, r, arguments, True)
        few, narrow, params, _ = make(device, dtype, (1, 8, 3, 3), torch.Size((8, 8, 3, 3)), False, arguments)
        check(ops.conv_bn_relu(few, narrow, *params, **arguments), few, narrow, params, None, arguments, True)
        ops.add_relu(x, x)
    (_, _, first), (_, _, second), (_, _, third) = rows
    assert first.backend == "triton_plane"
    assert second.backend == third.backend == "triton"
    assert "input channels in multiples of 64, not 8" in second.reason and "has no kernel for add_relu" in third.reason
