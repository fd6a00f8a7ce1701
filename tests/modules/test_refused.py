"""A call that raises has changed nothing: statistics, counters, gradients, arguments, random numbers."""

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused import nn as fused_nn
from resnet_fused import ops, strict

LAST = torch.channels_last


def images(*shape):
    return torch.randn(shape or (2, 8, 6, 6)).contiguous(memory_format=LAST)


def norm(channels=8):
    return {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}


def affine(channels=8):
    return torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)


def bn_relu(training, wrong):
    weight, bias = affine()
    arguments = {"x": images(), "weight": weight, "bias": bias, **norm(), "residual": images(), "training": training}
    return lambda given: ops.bn_relu(**given), arguments | wrong


def conv_bn_relu(training, wrong):
    bn_weight, bn_bias = affine()
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    arguments = {"x": images(), "weight": weight, "bn_weight": bn_weight, "bn_bias": bn_bias, **norm()}
    arguments |= {"residual": images(), "training": training, "padding": 1}
    return lambda given: ops.conv_bn_relu(**given), arguments | wrong


def conv_bn_relu_pool(training, wrong):
    arguments = {"x": images(2, 3, 16, 16), "weight": torch.randn(8, 3, 7, 7), "bn_weight": torch.ones(8)}
    arguments |= {"bn_bias": torch.zeros(8), **norm(), "stride": (2, 2), "padding": (3, 3)}
    return lambda given: ops.conv_bn_relu_pool(**given), arguments | wrong


def conv_bn_relu_pair(training, wrong):
    first = {"x": images(), "weight": torch.randn(8, 8, 3, 3), **norm(), "eps": 1e-5} | wrong
    second = torch.randn(8, 8, 1, 1), (torch.ones(8), torch.zeros(8), *norm().values())
    geometry = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "stride2": (2, 2), "eps2": 1e-5}

    def call(given):
        statistics = torch.ones(8), torch.zeros(8), given["running_mean"], given["running_var"]
        return ops.conv_bn_relu_pair(given["x"], given["weight"], statistics, *second, eps=given["eps"], **geometry)

    return call, first


def add_relu(training, wrong):
    return lambda given: ops.add_relu(**given), {"x": images(), "residual": images()} | wrong


def of_module(make):
    """A builder like the ones above for a module, whose batch norm gets what is no argument of forward."""

    def build(training, wrong):
        module = make().to(memory_format=LAST).train(training)
        for name in wrong.keys() - {"x", "residual"}:
            setattr(module.bn, name, wrong[name])
        given = {"x": images(), "residual": images()} | {n: wrong[n] for n in wrong.keys() & {"x", "residual"}}
        return lambda given: module(given["x"], given["residual"]), given | {"module": module}

    return build


def hooked(module):
    """The same module, whose children run one by one."""
    module.bn.register_forward_hook(lambda *args: None)
    return module


TARGETS = {
    "ops.bn_relu": bn_relu,
    "ops.conv_bn_relu": conv_bn_relu,
    "ops.add_relu": add_relu,
    "ops.conv_bn_relu_pool": conv_bn_relu_pool,
    "ops.conv_bn_relu_pair": conv_bn_relu_pair,
    "nn.BNReLU": of_module(lambda: fused_nn.BNReLU(8)),
    "nn.ConvBNReLU": of_module(lambda: fused_nn.ConvBNReLU(8, 8, 3)),
    "nn.AddReLU": of_module(fused_nn.AddReLU),
    "nn.BNReLU by modules": of_module(lambda: hooked(fused_nn.BNReLU(8))),
    "nn.ConvBNReLU by modules": of_module(lambda: hooked(fused_nn.ConvBNReLU(8, 8, 3))),
}
ADDS = {
    "residual of another shape": ({"residual": torch.randn(2, 8, 6, 5)}, "shape (2, 8, 6, 5), the result (2, 8, 6, 6)"),
    "residual with more dimensions": ({"residual": torch.randn(2, 2, 8, 6, 6)}, "residual has shape (2, 2, 8, 6, 6), the"),
    "complex residual": ({"residual": torch.randn(2, 8, 6, 6).to(torch.complex64)}, "residual torch.complex64 cannot be"),
    "complex number": ({"residual": 1j}, "residual 1j cannot be added to torch.float32"),
    "residual on another device": ({"residual": torch.empty(2, 8, 6, 6, device="meta")}, "torch.strided on meta, the result"),
    "residual in another layout": ({"residual": torch.randn(2, 8, 6, 6).to_mkldnn()}, "residual is torch._mkldnn on cpu, the"),
    "list as residual": ({"residual": [1.0]}, "residual should be a tensor or a number, got a list"),
    "word as residual": ({"residual": "relu"}, "residual should be a tensor or a number, got a str"),
}  # fmt: skip
NORMS = {
    "long running_var": ({"running_var": torch.ones(9)}, "running_var"),
    "short running_mean": ({"running_mean": torch.ones(7)}, "running_mean"),
    "no running_var": ({"running_var": None}, "running_"),
    "word as eps": ({"eps": "1e-5"}, "eps should be a number, got '1e-5'"),
    "no eps": ({"eps": None}, "eps should be a number, got None"),
    "negative eps": ({"eps": -1.0}, "eps must be"),
}
INPUTS = {
    "integer x": ({"x": torch.ones(2, 8, 6, 6, dtype=torch.int32)}, ""),
    "other channels": ({"x": torch.randn(2, 9, 6, 6)}, ""),
    "other size": ({"x": torch.randn(2, 8, 5, 6)}, ""),
}
WRONG = ADDS | NORMS | INPUTS
ONE_BY_ONE = {name for name in TARGETS if name.endswith("by modules")}  # torch's own norm counts before it checks
WITHOUT_RESIDUAL = ("ops.conv_bn_relu_pool", "ops.conv_bn_relu_pair")  # and for evaluation alone
CASES = [
    (target, wrong, training)
    for target in TARGETS
    for wrong in WRONG
    for training in (True, False)
    if not (target.lower().replace("_", "").endswith("addrelu") and (wrong in NORMS or wrong == "integer x"))
    and not (target in ONE_BY_ONE and wrong not in ADDS)
    and not (target in WITHOUT_RESIDUAL and (training or wrong in ADDS or wrong == "other size"))
]


def state(values):
    """Copies of all that a call might change."""
    found = {"random numbers": torch.get_rng_state()}
    for name, value in values.items():
        if isinstance(value, nn.Module):
            found |= {f"gradient of {n}": p.grad for n, p in value.named_parameters()}
            found |= {n: t.detach().clone() for n, t in value.state_dict().items()}
        elif isinstance(value, torch.Tensor):
            found |= {name: value.detach().clone(), f"gradient of {name}": value.grad}
    return found


def check_unchanged(values, before):
    after = state(values)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if value is None or value.is_meta or value.is_mkldnn:
            assert (value is None) == (after[name] is None), name
        else:
            assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(("target", "wrong", "training"), CASES, ids=lambda v: {True: "train", False: "eval"}.get(v, v))
def test_a_wrong_argument(target, wrong, training):
    edit, message = WRONG[wrong]
    call, given = TARGETS[target](training, edit)
    before = state(given)
    with strict(False), pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        call(given)
    assert message in str(caught.value) and str(caught.value).count("\n") <= ("residual" not in wrong) * 20
    check_unchanged(given, before)


BLOCKS = {
    "BasicBlock": lambda: resnet_fused.BasicBlock(8, 8),
    "Bottleneck": lambda: resnet_fused.Bottleneck(8, 2),
    "layer": lambda: resnet_fused.ResNet(resnet_fused.BasicBlock, [2, 1, 1, 1])._make_layer(
        resnet_fused.BasicBlock, 8, 2, 2
    ),
    "ResNet": lambda: resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=3),
    "ConvBNReLU": lambda: fused_nn.ConvBNReLU(8, 8, 3),
    "BNReLU": lambda: fused_nn.BNReLU(8),
}
X = {
    "None": lambda: None,
    "list": lambda: [1.0],
    "number": lambda: 1.0,
    "other channels": lambda: images(2, 5, 40, 40),
    "two dimensions": lambda: torch.randn(40, 40),
    "integers": lambda: torch.ones(2, 8, 40, 40, dtype=torch.int32),
    "float64": lambda: images(2, 8, 40, 40).double(),
}
TAKEN = {("BNReLU", "float64"), ("BNReLU", "two dimensions")}  # by F.batch_norm, or with torch's own order of checks


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("kind", "x"), [(k, x) for k in BLOCKS for x in X if (k, x) not in TAKEN])
def test_a_wrong_input_of_a_block(kind, x, training):
    module, given = BLOCKS[kind]().train(training), X[x]()
    before = state({"module": module})
    with strict(False), pytest.raises((RuntimeError, TypeError, ValueError, AttributeError)):
        module(given)
    check_unchanged({"module": module}, before)


@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck", "ConvBNReLU", "BNReLU"])
def test_one_value_per_channel(kind):
    module, x = BLOCKS[kind](), torch.randn(1, 8, 1, 1)
    before = state({"module": module})
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        module(x)
    check_unchanged({"module": module}, before)


@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck", "ResNet", "ConvBNReLU", "BNReLU"])
def test_inference_tensors(kind):
    """Autograd refuses to save them, which is known only after an op has run."""
    with torch.inference_mode():
        x = images(2, 3 if kind == "ResNet" else 8, 40, 40)
    module = BLOCKS[kind]()
    before = state({"module": module})
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"), strict(False):
        module(x)
    check_unchanged({"module": module}, before)


@pytest.mark.parametrize("residual", [2, 0.5, True], ids=str)
@pytest.mark.parametrize("target", [t for t in TARGETS if t not in WITHOUT_RESIDUAL])
def test_a_number_as_residual(target, residual):
    """As torch's `out += number`."""
    call, given = TARGETS[target](False, {"residual": residual})
    _, whole = TARGETS[target](False, {})
    whole |= given | {"residual": torch.full((2, 8, 6, 6), float(residual))}
    with torch.no_grad(), strict(False):
        torch.testing.assert_close(call(given), call(whole))


def test_the_sum_needs_a_residual():
    with pytest.raises(TypeError, match="add_relu: residual should be a tensor or a number, got None"):
        fused_nn.AddReLU()(images(), None)
