"""The patch convolution in Triton, called directly, against float64 beside torch's own error; and when it is chosen.

Without a GPU it runs in Triton's interpreter, whose bfloat16 is not a GPU's: those numbers count on a GPU only.
"""

import pytest
import torch
import torch.nn.functional as F
from test_conv_plane import EPS, check, make, pairs

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.ops.conv_bn_relu import reference

pytest.importorskip("triton")
from resnet_fused.kernels.triton import conv_patch as kernel

LAST = torch.channels_last
ROWS = {"rows": 128}
# x, weight, arguments, residual, launch
CONVS = [
    pytest.param((1, 64, 9, 11), (64, 64, 3, 3), {"padding": 1}, True, {}, id="one-image"),
    pytest.param((2, 64, 17, 18), (64, 64, 3, 3), {"padding": 1}, True, ROWS, id="patches-down-and-across"),
    pytest.param((19, 64, 3, 2), (64, 64, 3, 3), {"padding": 1}, False, ROWS, id="patches-of-images"),
    pytest.param((1, 72, 7, 5), (40, 72, 3, 3), {"padding": 1}, True, {}, id="ragged-channels"),
    pytest.param((2, 200, 4, 4), (8, 200, 1, 1), {}, True, {}, id="1x1"),
    pytest.param((1, 64, 4, 5), (256, 64, 3, 3), {"padding": 1}, True, {"block_k": 128}, id="wide"),
    pytest.param((2, 64, 8, 10), (64, 64, 3, 3), {"stride": 2, "padding": 1}, True, {}, id="stride-2"),
    pytest.param((2, 128, 6, 6), (64, 128, 1, 1), {"stride": 2}, False, {}, id="projection"),
    pytest.param((1, 64, 6, 9), (64, 64, 2, 4), {"stride": (2, 3), "padding": (0, 3)}, False, {}, id="stride-2-by-3"),
    pytest.param((1, 64, 5, 8), (64, 64, 3, 3), {"stride": (1, 2), "padding": 1}, False, {}, id="stride-1-by-2"),
    pytest.param((1, 64, 6, 5), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, True, {}, id="dilation-2"),
    pytest.param((1, 64, 8, 8), (64, 64, 3, 3), {"stride": 2, "padding": 3, "dilation": 3}, False, {}, id="both"),
    pytest.param((2, 64, 1, 1), (64, 64, 1, 1), {"padding": 2}, True, {}, id="pixels-without-taps"),
    pytest.param((3, 64, 1, 7), (64, 64, 1, 3), {"padding": (0, 1)}, False, {"num_stages": 3}, id="one-line"),
    pytest.param((2, 64, 5, 5), (64, 64, 5, 5), {}, True, {}, id="one-output"),
]


def empty(x, weight, arguments):
    shape = (len(x), *F.conv2d(x[:1].float(), weight.float(), **arguments).shape[1:])
    return torch.empty(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=LAST).fill_(float("nan"))


def run(x, weight, params, residual, arguments, relu, config=None):
    bn_weight, bn_bias, mean, var = params
    out = empty(x, weight, arguments)
    norm = mean, var, bn_weight, bn_bias
    kernel.conv_bn_relu(x, weight, *norm, residual, out, *pairs(arguments), 1, EPS, relu, config=config)
    return out


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


@pytest.mark.parametrize("stride", [1, 2])
def test_parts_of_larger_tensors(device, dtype, stride):
    """Real strides: every second image, without its border; the output has gaps too. What is around is NaN."""
    arguments = {"stride": stride, "padding": 1}
    x, weight, params, _ = make(device, dtype, (3, 64, 6, 8), torch.Size((64, 64, 3, 3)), False, arguments)
    big = torch.full((6, 9, 11, 64), float("nan"), dtype=dtype, device=device).permute(0, 3, 1, 2)
    inner = big[::2, :, 1:-2, 2:-1]
    inner.copy_(x)
    h, w = (6, 8) if stride == 1 else (3, 4)
    out = torch.full((6, h, w + 1, 64), float("nan"), dtype=dtype, device=device).permute(0, 3, 1, 2)
    bn_weight, bn_bias, mean, var = params
    part = out[::2, :, :, :-1]
    conv = pairs(arguments)
    kernel.conv_bn_relu(inner, weight, mean, var, bn_weight, bn_bias, None, part, *conv, 1, EPS, True)
    check(part, x, weight, params, None, arguments, True)
    assert out[1::2].isnan().all() and out[:, :, :, -1].isnan().all(), "nothing was written between"


def test_memory_that_the_hardware_cannot_copy_from(device, dtype):
    """A tensor that begins 2 bytes past a multiple of 16."""
    arguments = {"padding": 1}
    x, weight, params, _ = make(device, dtype, (2, 64, 3, 3), torch.Size((64, 64, 3, 3)), False, arguments)
    storage = torch.empty(x.numel() + 1, dtype=dtype, device=device)
    shifted = storage[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert shifted.data_ptr() % 16 == 2
    check(run(shifted, weight, params, None, arguments, True), x, weight, params, None, arguments, True)


def test_nan_stays_where_the_convolution_puts_it_and_the_residual_is_overwritten(device, dtype):
    x, weight, params, r = make(device, dtype, (2, 64, 5, 4), torch.Size((64, 64, 3, 3)), True, {"padding": 1})
    x[0, 3, 0, 0] = float("nan")
    bn_weight, bn_bias, mean, var = params
    expected = reference(x, weight, *params, r, padding=1)
    kernel.conv_bn_relu(x, weight, mean, var, bn_weight, bn_bias, r, r, [1, 1], [1, 1], [1, 1], 1, EPS, True)
    assert torch.equal(r.isnan(), expected.isnan()) and r.isnan().sum() == 4 * 64
    torch.testing.assert_close(r, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_a_weight_that_is_no_number_stays_in_its_channel(device, dtype):
    """With 72 channels the second block of 64 ends in the middle: what lies behind it, the next tap, is not read."""
    x, weight, params, _ = make(device, dtype, (1, 72, 4, 4), torch.Size((16, 72, 3, 3)), False, {"padding": 1})
    weight[5, 0, 1, 1] = float("inf")
    x.abs_().add_(0.1)
    ours = run(x, weight, params, None, {"padding": 1}, False)
    # The scale of channel 5 has no zero, and no tap but the middle one, which every pixel has, is infinite.
    assert (
        params[0][5] != 0 and ours[:, 5].isinf().all() and ours[:, :5].isfinite().all() and ours[:, 6:].isfinite().all()
    )


def test_no_parameters(device, dtype):
    x, weight, params, _ = make(device, dtype, (2, 64, 2, 2), torch.Size((64, 64, 1, 1)), False, {})
    params = (None, None, *params[2:])
    check(run(x, weight, params, None, {}, True), x, weight, params, None, {}, True)


def test_what_is_refused_is_refused_before_any_work(device):
    arguments = {"stride": 2, "padding": 1}
    x, weight, params, _ = make(device, torch.float16, (2, 64, 5, 4), torch.Size((64, 64, 3, 3)), False, arguments)
    with pytest.raises(ValueError, match="sizes that stride 2 divides, not 5"):
        run(x, weight, params, None, arguments, True)


def test_the_op_takes_it_where_asked_and_says_where_not(device, dtype):
    if (why := dispatch.BACKENDS["triton_patch"].why_not()) is not None:
        pytest.skip(why)
    arguments = {"padding": 1}
    x, weight, params, r = make(device, dtype, (1, 64, 3, 5), torch.Size((64, 64, 3, 3)), True, arguments)
    with resnet_fused.backend("triton_patch"), dispatch.record() as rows:
        ours = ops.conv_bn_relu(x, weight, *params, r, **arguments)
        check(ours, x, weight, params, r, arguments, True)
        few, narrow, params, _ = make(device, dtype, (1, 12, 3, 3), torch.Size((8, 12, 3, 3)), False, arguments)
        check(ops.conv_bn_relu(few, narrow, *params, **arguments), few, narrow, params, None, arguments, True)
    (_, _, first), (_, _, second) = rows
    assert (first.backend, second.backend) == ("triton_patch", "triton")
    assert second.reason == "the patch kernel takes input channels in multiples of 8, not 12"
