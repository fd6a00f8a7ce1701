"""The gradient of a convolution's weight by the Triton kernel, against float64; its schedule; who chooses it."""

import pytest
import torch
from cases import CONVOLUTIONS, activation
from training_cases import block, check

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.kernels.triton import weight_grad
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.convolution.gradients import conv_gradients
from resnet_fused.ops.convolution.op import out_shape

pytest.importorskip("triton")
from resnet_fused.kernels.triton.conv_weight_grad import conv_weight_grad

LAST = torch.channels_last
CASES = [p for p in CONVOLUTIONS if p.id != "two-groups"]
SHAPES = [  # pixels, k, columns, c, itemsize
    pytest.param(256 * 56 * 56, 64, 576, 64, 2, id="layer1"),
    pytest.param(256 * 7 * 7, 512, 4608, 512, 2, id="layer4"),
    pytest.param(256 * 56 * 56, 64, 576, 64, 4, id="fp32"),
    pytest.param(32 * 112 * 112, 64, 147, 3, 2, id="stem"),
    pytest.param(1, 10, 117, 13, 4, id="one-pixel"),
]


def pair(value):
    return [value, value] if isinstance(value, int) else list(value)


@pytest.mark.parametrize("memory_format", [LAST, torch.contiguous_format], ids=["krsc", "kcrs"])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "arguments"), CASES)
def test_against_float64(device, x_shape, weight_shape, arguments, dtype, slices, memory_format):
    where = [pair(arguments.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    x = activation(x_shape, dtype, device=device)
    weight = torch.empty(weight_shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    grad = activation(out_shape(x_shape, weight_shape, *where), dtype, device=device, mean=0.0)
    out = torch.empty_like(weight).fill_(torch.nan)
    conv_weight_grad(grad, x, weight, out, *where, 1, config={"slices": slices, "block_m": 16})
    eager, oracle = (
        torch.ops.aten.convolution_backward(g, y, w, None, *where, False, [0, 0], 1, [False, True, False])[1]
        for g, y, w in ((grad, x, weight), (exact(grad), exact(x), weight.double()))
    )
    assert_within_budget(out, eager, oracle, "the gradient of the weight", channel_dim=0)


@pytest.mark.parametrize("how", ["sliced", "every-second", "expanded", "nchw"])
def test_inputs_of_any_strides(how, device):
    x = {
        "sliced": activation((3, 20, 9, 11), device=device)[:, 2:18, 1:8, 3:9],
        "every-second": activation((3, 16, 14, 12), device=device)[:, :, ::2, 1::2],
        "expanded": activation((1, 16, 7, 6), device=device).expand(3, 16, 7, 6),
        "nchw": activation((3, 16, 7, 6), device=device).contiguous(),
    }[how]
    weight, grad = torch.empty(8, 16, 3, 3, device=device), activation((3, 8, 7, 6), device=device, mean=0.0)
    outs = [torch.empty_like(weight).fill_(torch.nan) for _ in range(2)]
    dense = x.clone(memory_format=LAST)
    for out, given, over in zip(outs, (x, dense), (grad.contiguous(), grad), strict=True):
        conv_weight_grad(over, given, weight, out, [1, 1], [1, 1], [1, 1], 1)
    assert torch.equal(*outs)
    oracle = torch.nn.grad.conv2d_weight(dense.double(), weight.shape, grad.double(), 1, 1)
    assert_within_budget(
        outs[0], torch.nn.grad.conv2d_weight(dense, weight.shape, grad, 1, 1), oracle, how, channel_dim=0
    )


def test_the_stem_trains_with_it(device):
    """7x7, stride 2, three channels, no gradient of the image; the bits of one run are those of the next."""
    if (why := dispatch.BACKENDS["triton"].why_not()) is not None:
        pytest.skip(why)
    torch.manual_seed(7)
    weight = (torch.randn(8, 3, 7, 7, device=device) / 12).contiguous(memory_format=LAST)
    x, grad = activation((2, 3, 20, 18), device=device), activation((2, 8, 10, 9), device=device, mean=0.0)
    geometry = [2, 2], [3, 3], [1, 1], 1
    with resnet_fused.backend("triton"), dispatch.record() as rows:
        (none, first), (_, second) = (conv_gradients(grad, x, weight, *geometry, False, True) for _ in range(2))
    assert none is None and torch.equal(first, second) and first.stride() == weight.stride()
    assert [(op, choice.backend) for op, _, choice in rows] == [("conv_weight_grad", "triton")] * 2
    eager, oracle = (
        torch.nn.grad.conv2d_weight(convert(x), weight.shape, convert(grad), 2, 3) for convert in (lambda t: t, exact)
    )
    assert_within_budget(first, eager, oracle, "the gradient of the weight", channel_dim=0)


def test_no_images_are_zeros(device):
    x, grad, out = (torch.empty(s, device=device) for s in ((0, 8, 5, 5), (0, 8, 5, 5), (8, 8, 3, 3)))
    conv_weight_grad(grad, x, out, out, [1, 1], [1, 1], [1, 1], 1)
    assert (out == 0).all()


@pytest.mark.parametrize(("m", "k", "columns", "c", "itemsize"), SHAPES)
def test_every_pixel_is_in_one_slice(m, k, columns, c, itemsize):
    default = weight_grad.launch(m, k, columns, c, itemsize, "ieee")
    configs = weight_grad.alternatives(m, k, columns, c, itemsize, "ieee")
    for made in (default, *(weight_grad.launch_as(default, m, k, columns, config) for config in configs)):
        size = made.steps * made.block_m
        assert (made.slices - 1) * size < m <= made.slices * size
        assert made.workspace(k, columns) <= weight_grad.WORKSPACE
        assert made.k_blocks * made.block_k >= k and made.n_blocks * made.block_n >= columns


@pytest.mark.parametrize(("kind", "stride"), [("identity", 1), ("projection", 2)])
def test_a_block_trains_with_it(kind, stride, device):
    if (why := dispatch.BACKENDS["triton"].why_not()) is not None:
        pytest.skip(why)
    model = block(kind, stride=stride).to(device, memory_format=LAST)
    x = activation((3, 16, 9, 8), device=device)
    grad = activation((3, 16 * stride, -(-9 // stride), 8 // stride), device=device)
    with resnet_fused.backend("triton"), dispatch.record() as rows:
        check(model, x, grad)
    used = [choice.backend for op, _, choice in rows if op == "conv_weight_grad"]
    assert used == ["triton"] * (2 if kind == "identity" else 3)


def test_torchs_by_default_and_what_it_refuses(device):
    x, weight = activation((1, 8, 4, 4), device=device), torch.empty(8, 8, 3, 3, device=device)
    where = ((1, 1), (1, 1), (1, 1))
    assert dispatch.choose_conv_weight_grad(x, x, weight, *where, 1).backend == "torch"
    if dispatch.BACKENDS["triton"].why_not() is None:
        with dispatch.backend("triton"):
            assert "one group, not 2" in dispatch.choose_conv_weight_grad(x, x, weight[:, :4], *where, 2).reason
