"""torch.set_default_device changes nothing: every tensor is made on a device that the code names."""

import ast

import pytest
import torch
from repository import ROOT
from resnets import narrow

import resnet_fused
from resnet_fused.commands import photo
from resnet_fused.commands.train import data, loop
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.reports.summary import summarize

MAKERS = {
    "arange", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
    "scalar_tensor", "tensor", "zeros",
}  # fmt: skip


def without_device(text):
    """The lines of a call such as torch.empty(...) that names no device."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS:
            named = any(keyword.arg == "device" for keyword in node.keywords)
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" and not named:
                yield node.lineno


def test_every_tensor_names_its_device():
    paths = sorted((ROOT / "resnet_fused").rglob("*.py"))
    found = {str(path.relative_to(ROOT)): list(without_device(path.read_text())) for path in paths}
    assert len(found) > 100 and {path: lines for path, lines in found.items() if lines} == {}


def test_the_check_sees_a_tensor_without_device():
    text = "torch.empty(3)\ntorch.zeros(3, device='cpu')\ntorch.empty_like(x)\nx.tensor(3)\ntorch.nn.init.ones(3)\n"
    assert list(without_device(text)) == [1]


@pytest.fixture(scope="module")
def network():
    """(model, image, logits of an engine, the engine)"""
    model, x = with_lively_norms(narrow()).eval(), torch.randn(1, 3, 40, 40)
    engine = resnet_fused.freeze(model, x)
    return model, x, engine(x), engine


@pytest.fixture
def elsewhere():
    """The default device has no memory, so that a tensor made there is useless."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


WAYS = {
    "an engine made before": lambda model, x, engine, path: engine(x),
    "an engine of another shape": lambda model, x, engine, path: engine(x.repeat(2, 1, 1, 1))[:1],
    "freeze": lambda model, x, engine, path: resnet_fused.freeze(model, x)(x),
    "freeze for GPUs": lambda model, x, engine, path: freeze_gpu(model, x, graph=False)(x),
    "live": lambda model, x, engine, path: model(x),
    "load_engine": lambda model, x, engine, path: (engine.save(path), resnet_fused.load_engine(path)(x))[1],
    "exported": lambda model, x, engine, path: engine.module()(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_default_device(elsewhere, network, tmp_path, way):
    model, x, expected, engine = network
    with torch.no_grad():
        out = WAYS[way](model, x, engine, tmp_path / "engine.safetensors")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_data_and_reports_with_another_default_device(elsewhere, network):
    model, x, _, _ = network
    train, _, _ = data.load("digits", 8, 0)
    image, label = data.first(train, 3)[0]
    assert image.device.type == "cpu" and image.isfinite().all() and label in range(10)
    assert sorted(i for step in loop.batches(12, 4, 0, 1, 0, 0) for i in step) == list(range(12))
    assert photo.load().isfinite().all()
    assert "conv_bn_relu" in str(resnet_fused.explain(model, x)) and summarize(model, x).rows
    assert resnet_fused.memory(model, (1, 3, 40, 40)).fused > 0
