"""The private convolution ops as torch sees them, on the emulator: schemas, checks, what reaches the launchers."""

import pytest
import torch
from emulator import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
EPS = 1e-5


def nhwc(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def ops():
    return build.load()


def arguments(**changes):
    """Those of conv_bn_relu, in order: a 3x3 convolution of 8 to 16 channels."""
    values = {
        "x": nhwc(2, 8, 7, 6),
        "weight": nhwc(16, 8, 3, 3),
        "mean": torch.randn(16),
        "var": torch.rand(16) + 0.5,
        "bn_weight": torch.randn(16),
        "bn_bias": torch.randn(16),
        "residual": None,
        "out": nhwc(2, 16, 7, 6),
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "eps": EPS,
        "activation": 1,
    }
    return values | changes


def convolution(a):
    x, weight = a["x"].double(), a["weight"].double()
    return torch.nn.functional.conv2d(x, weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])


def test_conv_bn_relu(ops):
    a = arguments(weight=nhwc(16, 8, 3, 2), out=nhwc(2, 16, 4, 6), residual=nhwc(2, 16, 4, 6))
    a |= {"stride": [2, 1], "padding": [1, 1], "dilation": [1, 2]}
    ops.conv_bn_relu(**a)
    bn = torch.nn.functional.batch_norm(
        convolution(a), *(a[n].double() for n in ("mean", "var", "bn_weight", "bn_bias")), eps=EPS
    )
    torch.testing.assert_close(a["out"].double(), (bn + a["residual"].double()).relu(), rtol=1e-5, atol=1e-5)


def test_conv_bn_relu_pool(ops):
    a = arguments(x=nhwc(1, 3, 13, 12), weight=nhwc(64, 3, 7, 7), out=nhwc(1, 64, 4, 3), stride=[2, 2], padding=[3, 3])
    for name in ("mean", "var", "bn_weight", "bn_bias"):
        a[name] = torch.rand(64) + 0.5
    bn = torch.nn.functional.batch_norm(
        convolution(a), *(a[n].double() for n in ("mean", "var", "bn_weight", "bn_bias")), eps=EPS
    )
    for name in ("residual", "dilation", "groups", "activation"):
        del a[name]
    ops.conv_bn_relu_pool(**a)
    expected = torch.nn.functional.max_pool2d(bn.relu(), 3, 2, 1)
    torch.testing.assert_close(a["out"].double(), expected, rtol=1e-5, atol=1e-5)


def test_conv_stats(ops):
    a = arguments()
    mean, invstd, running_mean, running_var = torch.empty(16), torch.empty(16), torch.zeros(16), torch.ones(16)
    x, weight, out, where = a["x"], a["weight"], a["out"], (a["stride"], a["padding"], a["dilation"], a["groups"])
    ops.conv_stats(x, weight, out, mean, invstd, running_mean, running_var, None, *where, 0.25, EPS)
    torch.testing.assert_close(out.double(), convolution(a), rtol=1e-5, atol=1e-5)
    values = out.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(invstd.double(), (values.var(1, correction=0) + EPS).rsqrt(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running_mean.double(), 0.25 * values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running_var.double(), 0.75 + 0.25 * values.var(1), rtol=1e-5, atol=1e-6)


BAD = [
    ({"x": torch.randn(2, 8, 7, 6)}, "x has strides .* for shape .2, 8, 7, 6., but must be channels_last"),
    ({"weight": torch.randn(16, 8, 3, 3)}, "weight has strides .*, but must be channels_last"),
    ({"weight": nhwc(16, 8, 3, 3).half()}, "weight has another dtype than x"),
    ({"weight": nhwc(16, 4, 3, 3)}, r"weight has shape \[16, 4, 3, 3\] and groups is 1, but x has 8 channels"),
    ({"groups": 3}, "groups is 3, but x has 8 channels"),
    (
        {"x": torch.randn(8, 7, 6)},
        r"x has shape \[8, 7, 6\] and weight \[16, 8, 3, 3\], but both must have 4 dimensions",
    ),
    ({"out": nhwc(2, 16, 6, 6)}, r"out has shape \[2, 16, 6, 6\], but the result is \[2, 16, 7, 6\]"),
    ({"out": torch.randn(2, 16, 7, 6)}, "out has strides .*, but must be channels_last"),
    ({"out": nhwc(2, 16, 7, 6).half()}, "out has another dtype than x"),
    ({"residual": nhwc(2, 16, 7, 5)}, r"residual has shape \[2, 16, 7, 5\], but out has \[2, 16, 7, 6\]"),
    ({"mean": torch.zeros(8)}, r"mean has shape \[8\], but out has 16 channels"),
    ({"stride": [0, 1]}, "stride must be positive, but is 0"),
    ({"padding": [-1, 1]}, "padding must not be negative, but is -1"),
    ({"activation": 2}, r"activation is 2, but the kernel has 0 \(none\), 1 \(relu\)"),
    ({"dilation": [9, 9]}, r"a kernel of 3x3 does not fit into x of shape \[2, 8, 7, 6\]"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_arguments_are_named(ops, changes, message):
    with pytest.raises(RuntimeError, match="^conv_bn_relu: .*" + message):
        ops.conv_bn_relu(**arguments(**changes))


def test_empty_batch_launches_nothing(ops):
    ops.conv_bn_relu(**arguments(x=nhwc(0, 8, 7, 6), out=nhwc(0, 16, 7, 6)))
