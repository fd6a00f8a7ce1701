"""The stem in one op: convolution, batch norm, ReLU and max-pool, on every backend."""

import copy

import pytest
import torch
from cases import DTYPES, FORMATS, activation, channels

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.measure.oracle import by_modules
from resnet_fused.ops.conv_bn_relu_pool import reference

# input, filters, stride, padding; the map's last row and column lie in two pooling windows or one
STEMS = [
    pytest.param((2, 3, 37, 30), (16, 3, 7, 7), 2, 3, id="resnet"),
    pytest.param((1, 3, 32, 33), (64, 3, 7, 7), 2, 3, id="64-channels"),
    pytest.param((3, 1, 9, 8), (5, 1, 3, 3), 1, 1, id="grey-3x3"),
    pytest.param((1, 4, 7, 7), (8, 4, 7, 7), 2, 0, id="one-pixel"),
    pytest.param((1, 3, 16, 16), (8, 3, 5, 3), (2, 1), (1, 2), id="not-square"),
    pytest.param((1, 8, 16, 16), (8, 8, 3, 3), 1, 1, id="many-channels"),
]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def stem(shape, weight_shape, dtype, device, memory_format=torch.channels_last):
    fan_in = weight_shape[1] * weight_shape[2] * weight_shape[3]
    x = activation(shape, dtype, memory_format, device)
    weight = activation(weight_shape, dtype, torch.contiguous_format, device, mean=0.0, std=(2 / fan_in) ** 0.5)
    return x, weight, channels(weight_shape[0], device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "weight_shape", "stride", "padding"), STEMS)
def test_against_float64(backend, numbers_count, device, shape, weight_shape, stride, padding, dtype):
    numbers_count(dtype)
    x, weight, params = stem(shape, weight_shape, dtype, device)
    conv = {"stride": pair(stride), "padding": pair(padding)}
    ours, eager = (f(x, weight, *params, **conv) for f in (ops.conv_bn_relu_pool, reference))
    oracle = reference(exact(x), exact(weight), *(exact(p) for p in params), **conv)
    assert_within_budget(ours, eager, oracle, "out")


@pytest.mark.parametrize("memory_format", FORMATS)
def test_formats_and_parameters(backend, device, memory_format):
    x, weight, params = stem((2, 3, 20, 20), (16, 3, 7, 7), torch.float32, device, memory_format)
    conv = {"stride": (2, 2), "padding": (3, 3), "eps": 0.1}
    for chosen in (params, (None, None, *params[2:])):
        ours, eager = (f(x, weight, *chosen, **conv) for f in (ops.conv_bn_relu_pool, reference))
        oracle = reference(exact(x), exact(weight), *(exact(p) for p in chosen), **conv)
        assert_within_budget(ours, eager, oracle, "out")


NAN, INF = float("nan"), float("inf")


# Not infinite weights: torch leaves out the products with the zeros of the padding, others multiply 0 by infinity.
@pytest.mark.parametrize(("where", "value"), [
    ("pixel", NAN), ("pixel", INF), ("pixel", -INF), ("weight", NAN), ("var", NAN), ("var", INF), ("var", -1.0),
    ("scale", NAN), ("scale", 0.0),
], ids=str)  # fmt: skip
def test_special_values(backend, device, where, value):
    x, weight, params = stem((1, 3, 24, 24), (8, 3, 7, 7), torch.float32, device)
    bn_weight, _, _, var = params
    target = {"pixel": x[0, 1, 9], "weight": weight[2, 0, 3], "var": var, "scale": bn_weight}[where]
    target[5] = value
    ours, eager = (f(x, weight, *params, stride=(2, 2), padding=(3, 3)) for f in (ops.conv_bn_relu_pool, reference))
    assert torch.equal(ours.isnan(), eager.isnan()) and torch.equal(ours.isinf(), eager.isinf())


def rows_of(function):
    with dispatch.record() as rows:
        function()
    return [op for op, _, _ in rows]


def test_one_op_where_a_kernel_takes_it(backend, device):
    x, weight, params = stem((1, 3, 24, 24), (8, 3, 7, 7), torch.float32, device)
    conv = {"stride": (2, 2), "padding": (3, 3)}
    fused = backend in ("native", "emulator", "cuda")
    assert (rows_of(lambda: ops.conv_bn_relu_pool(x, weight, *params, **conv)) == ["conv_bn_relu_pool"]) is fused
    weight.requires_grad_()
    assert "conv_bn_relu_pool" not in rows_of(lambda: ops.conv_bn_relu_pool(x, weight, *params, **conv))


def test_opcheck(device):
    x, weight, params = stem((2, 3, 20, 20), (16, 3, 7, 7), torch.float32, device)
    bn_weight, bn_bias, mean, var = params
    op = torch.ops.resnet_fused.conv_bn_relu_pool.default
    with dispatch.strict(False):
        torch.library.opcheck(op, (x, weight, mean, var, bn_weight, bn_bias, [2, 2], [3, 3], 1e-5))


@pytest.mark.parametrize("change", [
    pytest.param(lambda m: None, id="as-it-is"),
    pytest.param(lambda m: setattr(m, "maxpool", torch.nn.MaxPool2d(2)), id="other-pool"),
    pytest.param(lambda m: setattr(m, "maxpool", torch.nn.Identity()), id="no-pool"),
    pytest.param(lambda m: m.maxpool.register_forward_hook(lambda *_: None), id="hooked-pool"),
    pytest.param(lambda m: m.bn1.train(), id="stem-trains"),
])  # fmt: skip
def test_the_network_uses_it_where_nobody_can_tell(device, change):
    model = resnet_fused.resnet18(num_classes=5).to(device).eval()
    change(model)
    reference_model = by_modules(copy.deepcopy(model))
    x = torch.randn(2, 3, 64, 64, device=device)
    with torch.no_grad(), dispatch.record() as rows:
        out = model(x)
        expected = reference_model(x)
        oracle = copy.deepcopy(reference_model).double()(x.double())
    assert_within_budget(out, expected, oracle, "logits", channel_dim=None)
    plain = not model.bn1.training and not model.maxpool._forward_hooks and change(copy.deepcopy(model)) is None
    has_kernel = library.why_absent() is None
    fused = any(op == "conv_bn_relu_pool" for op, _, _ in rows)
    same_pool = type(model.maxpool) is torch.nn.MaxPool2d and model.maxpool.kernel_size == 3
    assert fused is (plain and same_pool and has_kernel)


def test_explain_names_the_parts(device):
    model = resnet_fused.resnet18(num_classes=5).to(device).eval()
    rows = resnet_fused.explain(model, torch.randn(1, 3, 64, 64, device=device)).rows
    if library.why_absent() is None:
        assert rows[0]["name"] == "conv1+bn1+relu+maxpool" and rows[0]["op"] == "conv_bn_relu_pool"
