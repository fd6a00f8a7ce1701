"""The first convolution of a block and its projection, in one op where a backend has a kernel for both."""

import pytest
import torch
from cases import activation, channels

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference

PAIRS = [
    pytest.param((2, 16, 9, 8), (24, 16, 3, 3), (24, 16, 1, 1), (2, 2), (1, 1), id="basic-block"),
    pytest.param((1, 16, 6, 5), (8, 16, 1, 1), (32, 16, 1, 1), (1, 1), (0, 0), id="bottleneck"),
    pytest.param((1, 13, 5, 5), (10, 13, 3, 3), (10, 13, 1, 1), (2, 2), (1, 1), id="odd-channels"),
]


def pair(shape, weight_shape, weight_shape2, dtype, device):
    x = activation(shape, dtype, device=device)
    weights = (
        activation(s, dtype, torch.contiguous_format, device, mean=0.0, std=(2 / (s[1] * s[2] ** 2)) ** 0.5)
        for s in (weight_shape, weight_shape2)
    )
    return x, *((w, channels(w.shape[0], device)) for w in weights)


def wide(t):
    return tuple(map(exact, t)) if isinstance(t, tuple) else exact(t)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), pytest.param(torch.float16, id="fp16")])
@pytest.mark.parametrize(("shape", "weight_shape", "weight_shape2", "stride", "padding"), PAIRS)
def test_against_float64(backend, numbers_count, device, shape, weight_shape, weight_shape2, stride, padding, dtype):
    numbers_count(dtype)
    x, (weight, norm), (weight2, norm2) = pair(shape, weight_shape, weight_shape2, dtype, device)
    with dispatch.record() as rows:
        both = ops.conv_bn_relu_pair(
            x, weight, norm, weight2, norm2, stride=stride, padding=padding, dilation=(1, 1), eps=1e-3,
            stride2=stride, eps2=0.1,
        )  # fmt: skip
    assert ([op for op, _, _ in rows] == ["conv_bn_relu_pair"]) is (backend in ("cuda", "emulator"))
    for out, w, n, options in (
        (both[0], weight, norm, {"stride": stride, "padding": padding, "eps": 1e-3}),
        (both[1], weight2, norm2, {"stride": stride, "eps": 0.1, "relu": False}),
    ):
        eager = reference(x, w, *n, **options)
        assert_within_budget(out, eager, reference(wide(x), wide(w), *wide(n), **options), "out")
        assert out.stride() == eager.stride()


@pytest.mark.parametrize("block", [resnet_fused.BasicBlock, resnet_fused.Bottleneck])
@pytest.mark.parametrize("mode", ["eval", "gradients", "half-trained"])
def test_a_block(backend, device, block, mode):
    downsample = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8 * block.expansion, 1, 2, bias=False), torch.nn.BatchNorm2d(8 * block.expansion)
    )
    ours = block(8, 8, 2, downsample).to(device).eval()
    ours.downsample[1].train(mode == "half-trained")
    x = activation((2, 8, 10, 10), device=device)
    with torch.set_grad_enabled(mode == "gradients"), dispatch.record() as rows:
        out = ours(x)
    fused = backend in ("cuda", "emulator") and mode == "eval"
    assert any(op == "conv_bn_relu_pair" for op, _, _ in rows) is fused
    if mode == "half-trained":
        ours.downsample[1].reset_running_stats()
    expected = ours.forward_by_modules(x)
    assert_within_budget(out, expected, ours.double().forward_by_modules(x.double()), "out")


def test_opcheck(device):
    x, (weight, norm), (weight2, norm2) = pair((2, 16, 9, 8), (24, 16, 3, 3), (24, 16, 1, 1), torch.float32, device)
    op = torch.ops.resnet_fused.conv_bn_relu_pair.default
    sides = [w for n in (norm, norm2) for w in ((n[2], n[3], n[0], n[1]),)]
    with dispatch.strict(False):
        torch.library.opcheck(
            op, (x, weight, *sides[0], [2, 2], [1, 1], [1, 1], 1e-5, weight2, *sides[1], [2, 2], 1e-5)
        )  # fmt: skip


def test_explain_names_both(device):
    if device != "cuda":
        pytest.skip("only CUDA has a kernel for both by default")
    model = resnet_fused.resnet18(num_classes=5).to(device).half().eval()
    rows = resnet_fused.explain(model, torch.randn(1, 3, 64, 64, device=device).half()).rows
    assert any(row["op"] == "conv_bn_relu_pair" and "downsample" in row["name"] for row in rows)
