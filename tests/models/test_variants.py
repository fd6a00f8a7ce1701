"""Every network of the paper, at the sizes that people use, and the table of what it consists of."""

import copy

import pytest
import torch
from foreign import run
from nets import fused_sites
from resnets import narrow
from torch import nn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.commands.main import main
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules, with_lively_norms
from resnet_fused.reports.summary import summarize

# Parameters with option A and 10 classes; the paper's table 6 rounds them: 0.27, 0.46, 0.66, 0.85, 1.7 million.
CIFAR = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_networks_have_the_papers_size(name):
    model = getattr(resnet_fused, name)()
    assert sum(p.numel() for p in model.parameters()) == CIFAR[name]
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert layers == int(name.removeprefix("resnet"))  # none in the shortcuts
    with_b = getattr(resnet_fused, name)(shortcut="projection")
    assert sum(isinstance(m, nn.Conv2d) for m in with_b.modules()) == layers - 1 + 2


@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
@pytest.mark.parametrize("training", [False, True])
def test_a_cifar_network_against_float64(shortcut, training):
    model = with_lively_norms(resnet_fused.resnet20(shortcut=shortcut, num_classes=7)).train(training)
    reference, exact, x = by_modules(model), copy.deepcopy(model).double(), torch.randn(8, 3, 32, 32)
    with dispatch.record() as rows, torch.no_grad():
        out = model(x)
    convolutions = 19 + 2 * (shortcut == "projection")
    assert sum(op == ("bn_stats" if training else "conv_bn_relu") for op, _, _ in rows) == convolutions
    with torch.no_grad():
        assert_within_budget(out, reference(x), exact(x.double()), "logits", channel_dim=None)


def test_what_a_cifar_network_refuses():
    with pytest.raises(ValueError, match="n should be at least 1, got 0"):
        resnet_fused.CifarResNet(0)
    with pytest.raises(ValueError, match="'projection' or 'zero_pad', got 'B'"):
        resnet_fused.resnet20(shortcut="B")
    with pytest.raises(ValueError, match="'DEFAULT' is not a file, and torchvision has no weights for resnet20"):
        resnet_fused.resnet20(weights="DEFAULT")


def test_cifar_weights_from_a_file(tmp_path):
    model = resnet_fused.resnet20(num_classes=100)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = resnet_fused.resnet20(weights=tmp_path / "w.pth").eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), model.eval()(x)) and loaded.fc.out_features == 100


@pytest.mark.parametrize("block", [resnet_fused.BasicBlock, resnet_fused.Bottleneck])
@pytest.mark.parametrize("layers", [[1, 2, 1, 3], [2, 1, 1, 1]])
def test_any_list_of_layers(block, layers):
    model, x = with_lively_norms(resnet_fused.ResNet(block, layers, num_classes=3)).eval(), torch.randn(2, 3, 48, 64)
    out, rows = run(model, x)
    per_block = 3 if block is resnet_fused.Bottleneck else 2
    projections = 4 - (block is resnet_fused.BasicBlock)  # its first stage keeps the shape
    assert fused_sites(rows) == 1 + per_block * sum(layers) + projections
    with torch.no_grad():
        assert_within_budget(
            out, by_modules(model)(x), copy.deepcopy(model).double()(x.double()), "logits", channel_dim=None
        )


@pytest.mark.parametrize(
    "size", [(32, 32), (33, 95), (97, 32), (224, 224), (225, 223), (160, 416), (1024, 1024)], ids=str
)
def test_sizes(size):
    model = with_lively_norms(narrow()).eval()
    x = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_modules(model)(x), rtol=1e-4, atol=1e-4)


def test_average_pool_of_7_is_the_adaptive_one_at_224():
    model, x = with_lively_norms(narrow()).eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        adaptive = model(x)
        model.avgpool = nn.AvgPool2d(7)
        torch.testing.assert_close(model(x), adaptive, rtol=1e-6, atol=1e-6)


def test_summary_is_the_papers_table():
    rows = {row["layer"]: row for row in summarize(resnet_fused.resnet34().eval(), torch.randn(1, 3, 224, 224)).rows}
    outputs = {name: row["output"] for name, row in rows.items()}
    assert outputs == {
        "conv1": "64x112x112", "maxpool": "64x56x56", "layer1.0-2": "64x56x56", "layer2.0": "128x28x28",
        "layer2.1-3": "128x28x28", "layer3.0": "256x14x14", "layer3.1-5": "256x14x14", "layer4.0": "512x7x7",
        "layer4.1-2": "512x7x7", "avgpool": "512x1x1", "fc": "1000", "all": "1000",
    }  # fmt: skip
    assert rows["layer3.1-5"]["kernels"] == "[3x3, 256; 3x3, 256] x 5"
    assert rows["layer2.0"]["kernels"] == "3x3, 128, /2; 3x3, 128; 1x1, 128, /2"
    assert rows["all"]["parameters"] == 21_797_672 == sum(r["parameters"] for n, r in rows.items() if n != "all")
    assert rows["all"]["flops"] == sum(r["flops"] for n, r in rows.items() if n != "all")
    assert f"{rows['all']['flops'] / 1e9:.2f}" == "3.66"  # the paper: 3.6
    assert rows["layer1.0-2"]["fused"].startswith("2 conv_bn_relu (")


@pytest.mark.parametrize(
    ("name", "gflops"),
    [("resnet18", 1.81), ("resnet50", 4.09), ("resnet101", 7.80), ("resnet20", 0.0406)],
)
def test_flops(name, gflops):
    """The paper counts 1.8, 3.8 and 7.6; its Bottleneck has the stride in the first 1x1 convolution."""
    model = getattr(resnet_fused, name)().eval()
    x = torch.randn(1, 3, 32, 32) if len(model.fc.weight) == 10 else torch.randn(1, 3, 224, 224)
    assert summarize(model, x).rows[-1]["flops"] / 1e9 == pytest.approx(gflops, rel=3e-3)


def test_summary_tells_what_runs_by_modules():
    model = resnet_fused.resnet20().eval()
    model.layer2[1].conv2.register_forward_hook(lambda *args: None)
    model.conv1.register_forward_hook(lambda *args: None)
    rows = {row["layer"]: row["fused"] for row in summarize(model, torch.randn(1, 3, 32, 32)).rows}
    assert (
        rows["layer2.1"] == "by modules: conv2 carries a hook" and rows["conv1"] == "by modules: conv1 carries a hook"
    )
    assert "layer1.0-2" in rows and rows["layer2.2"].startswith("2 conv_bn_relu")
    with pytest.raises(TypeError, match="summary: Linear is not a ResNet"):
        summarize(nn.Linear(1, 1), torch.randn(1, 1))


def test_summary_on_the_command_line(capsys):
    assert main(["summary", "resnet20"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "resnet20 at 32x32, evaluation on cpu" and out[1].split()[:2] == ["layer", "kernel"]
    assert out[-2].split()[:4] == ["all", "10", "269,722", "40,551,040"]
