"""explain(): names, backends and reasons, and no trace left in the model."""

import pytest
import torch

import resnet_fused
from resnet_fused import explain, freeze, ops, strict
from resnet_fused.kernels import library
from resnet_fused.reports.explain import COLUMNS

needs_native = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


@pytest.fixture
def model():
    return resnet_fused.resnet18().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64)


def names(report, op):
    return [row["name"] for row in report.rows if row["op"] == op]


@needs_native
def test_every_convolution_of_evaluation_has_a_row(model, x):
    report = explain(model, x)
    convolutions = names(report, "conv_bn_relu_pool") + names(report, "conv_bn_relu")
    assert len(convolutions) == 20 and convolutions[:3] == [
        "conv1+bn1+relu+maxpool", "layer1.0.conv1+bn1+relu", "layer1.0.conv2+bn2+add+relu",
    ]  # fmt: skip
    assert convolutions[5:8] == ["layer2.0.conv1+bn1+relu", "layer2.0.downsample.0+1", "layer2.0.conv2+bn2+add+relu"]
    assert all(row.keys() == COLUMNS.keys() for row in report.rows)
    assert all(row["backend"] in resnet_fused.backends() and row["reason"] for row in report.rows)
    table = str(report).splitlines()
    assert len(table) == len(report.rows) + 2 and table[0].split() == list(COLUMNS.values())


@needs_native
def test_training_leaves_the_buffers_and_the_mode_alone(model, x):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = explain(model, x)
    assert len(names(report, "bn_stats")) == len(names(report, "conv_stats")) == 20
    ends = names(report, "bn_add_bn_relu")
    assert ends == [f"layer{i}.0.bn2+downsample.1+add+relu" for i in (2, 3, 4)]
    assert names(report, "bn_relu")[:3] == ["bn1+relu", "layer1.0.bn1+relu", "layer1.0.bn2+add+relu"]
    assert len(names(report, "bn_relu")) == 1 + 2 * 8 - len(ends)
    assert names(report, "conv_stats")[6:9] == ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv1"]
    assert names(report, "bn_stats")[-1] == "layer4.1.bn2"
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@needs_native
def test_passes_that_frozen_batch_norms_leave_out(model, x):
    """Frozen, and with gradients, the convolution has no statistics and so no row of its own."""
    model.train()
    for bn in (model.bn1, model.layer1[0].bn1, model.layer2[0].downsample[1]):
        bn.eval()
    report = explain(model, x)
    assert names(report, "bn_stats")[0] == "layer1.0.bn2" and "layer2.0.downsample.1" not in names(report, "bn_stats")
    assert names(report, "bn_add_bn_relu")[0] == "layer2.0.bn2+downsample.1+add+relu"


def test_no_hook_stays_even_after_an_error(model, x):
    with pytest.raises(RuntimeError):
        explain(model, x[:, :2])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@needs_native
def test_blocks_by_modules_say_why(model, x):
    model.layer1[1].conv2.register_forward_hook(lambda *args: None)
    report = explain(model, x)
    rows = [row for row in report.rows if row["backend"] == "modules"]
    assert [(row["name"], row["op"], row["shape"]) for row in rows] == [("layer1.1", "BasicBlock", "2x64x16x16")]
    assert rows[0]["reason"] == "conv2 carries a hook"
    assert len(names(report, "conv_bn_relu")) == 18  # with the stem, whose map has eager's strides beside a hook


def test_a_whole_model_by_modules(model, x):
    rows = explain(model.double(), x.double()).rows
    assert len(rows) == 9 and rows[0]["name"] == "stem"
    assert all(row["backend"] == "modules" and "float64" in row["reason"] for row in rows)


@needs_native
def test_tensors_that_no_kernel_takes_are_told(x):
    class Broadcast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = resnet_fused.nn.ConvBNReLU(3, 8, 3)

        def forward(self, x):
            return self.part(x, torch.ones(8, 1, 1))

    rows = [row for row in explain(Broadcast().eval(), x).rows if row["backend"] == "eager"]
    assert [(row["name"], row["op"]) for row in rows] == [("part.bn", "batch_norm")]


def test_the_fallback_is_told(model, x):
    with strict(False), resnet_fused.backend("eager"):
        assert {row["backend"] for row in explain(model, x).rows} == {"eager"}


@needs_native
def test_a_network_of_ones_own(x):
    class Sum(torch.nn.Module):
        def forward(self, x):
            return ops.add_relu(x, x)

    assert names(explain(Sum(), x), "add_relu") == ["add+relu"]


@needs_native
def test_a_compiled_model_is_explained_as_it_is_written(model, x):
    assert explain(torch.compile(model), x).rows == explain(model, x).rows


def test_an_engine_reports_what_it_was_built_of(model, x):
    rows = explain(freeze(model, x), x).rows
    assert len(rows) == 20 and rows[1]["shape"] == "2x64x16x16" and rows[1]["dtype"] == "float32"
    assert all(row.keys() == COLUMNS.keys() and row["reason"] for row in rows)
