"""A network as a list of steps: who reads what, the same network made of its steps again, and what cannot be read."""

import pytest
import torch
from resnets import narrow, pair

import resnet_fused
from resnet_fused.frozen import network
from resnet_fused.frozen.function import Value
from resnet_fused.frozen.network import Apply, ConvBn, Head, Network
from resnet_fused.frozen.read import read
from resnet_fused.measure.oracle import by_modules, with_lively_norms


def test_the_steps_of_a_basic_block_with_a_projection():
    model = narrow()
    model.layer1 = model.layer3 = model.layer4 = torch.nn.Sequential()
    model.fc = torch.nn.Linear(128, 5)
    steps, result, _ = read(model.eval(), torch.randn(1, 3, 32, 32))
    assert [(s.name, s.input, s.residual, s.output) for s in steps] == [
        ("conv1", 0, None, 1),
        ("layer2.0.downsample", 1, None, 2),
        ("layer2.0.conv1", 1, None, 3),
        ("layer2.0.conv2", 3, 2, 4),
        ("fc", 4, None, 5),
    ]
    assert result == Value(5)
    assert network.dead_values(steps) == [(0,), (), (1,), (3, 2), (4,)]
    assert [s.op for s in steps[:-1]] == ["conv_bn_relu_pool", "conv_bn", "conv_bn_relu", "conv_bn_add_relu"]
    assert steps[-1].fc is model.fc


def test_other_shortcuts_and_pools_are_modules():
    model = narrow("zero_pad")
    model.maxpool = torch.nn.MaxPool2d(2)
    steps = read(model, torch.randn(1, 3, 64, 64))[0]
    assert [s.name for s in steps if isinstance(s, Apply)] == [
        "maxpool",
        *(f"layer{i}.0.downsample" for i in (2, 3, 4)),
    ]
    model.maxpool = torch.nn.Identity()
    assert [s.name for s in read(model, torch.randn(1, 3, 64, 64))[0]][:2] == ["conv1", "layer1.0.conv1"], (
        "nothing runs for nothing"
    )


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "zero_pad", "pool", "cifar"])
@torch.no_grad()
def test_the_network_of_the_steps_is_the_network(kind):
    model = {
        "basic": narrow,
        "bottleneck": lambda: narrow(block=resnet_fused.Bottleneck),
        "zero_pad": lambda: narrow("zero_pad"),
        "pool": narrow,
        "cifar": resnet_fused.resnet20,
    }[kind]()
    if kind == "pool":
        model.maxpool = torch.nn.MaxPool2d(2)
    model, x = with_lively_norms(model).eval(), torch.randn(2, 3, 40, 40)
    steps, result, _ = read(model, x)
    again = Network(steps, result).eval()
    assert torch.equal(again(x), by_modules(model)(x))
    same, result, _ = read(again, x)
    assert [type(s) for s in steps] == [type(s) for s in same] and isinstance(steps[-1], Head)
    assert torch.equal(Network(same, result).eval()(x), again(x))


def test_the_shape_of_a_step():
    conv = torch.nn.Conv2d(3, 8, (5, 3), (2, 1), (2, 0), (1, 2), bias=False)
    step = ConvBn("conv", conv, torch.nn.BatchNorm2d(8), pool=True, shape=(2, 3, 33, 20))
    with torch.no_grad():
        out = conv(torch.empty(step.shape))
    assert step.conv_shape() == out.shape
    assert step.out_shape() == torch.nn.functional.max_pool2d(out, 3, 2, 1).shape
    assert step.conv_shape((1, 3, 7, 9)) == conv(torch.empty(1, 3, 7, 9)).shape


def test_observing_leaves_a_model_as_it_was():
    model = pair("resnet18")[1].train()
    model.layer2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    steps = read(model, torch.randn(1, 3, 32, 32))[0]
    network.observe(
        model, steps, torch.randn(1, 3, 32, 32), lambda step, x, y: seen.append((step.name, x.shape, y.shape))
    )
    assert seen[0] == ("conv1", (1, 3, 32, 32), (1, 64, 16, 16)) and seen[-1] == ("fc", (1, 512, 1, 1), (1, 1000))
    assert model.training and not model.layer2.training and model.layer1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv1._forward_pre_hooks and not model.bn1._forward_hooks
