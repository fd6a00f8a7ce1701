"""Which networks the benchmarks of whole models take."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from torchvision_shim import torchvision

from benchmarks.protocol import options, zoo
from resnet_fused.commands.arguments import UsageError
from resnet_fused.conversion.convert import is_converted

assert torchvision  # other packages import it only after the shim


@pytest.mark.parametrize("name", ["resnet34", "resnet20", "timm/resnet18", "torchvision/resnet18"])
def test_a_network_by_its_name(name):
    assert zoo.network_name(name) == name
    model = options.model_of(SimpleNamespace(model=name)).eval()
    assert any(map(is_converted, model.modules())) == ("/" in name)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10 if name == "resnet20" else 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("resnet35", "'resnet35' is no network of this package", id="ours"),
        pytest.param("timm/resnet35", "'timm/resnet35' is no network of timm", id="timm"),
        pytest.param("keras/resnet50", "'keras' is none of timm, torchvision", id="package"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        zoo.network_name(name)


def test_a_part_of_a_network():
    name = "torchvision/fasterrcnn_resnet50_fpn.backbone"
    assert zoo.network_name(name) == name
    with torch.no_grad():
        assert list(zoo.build(name).eval()(torch.zeros(1, 3, 32, 32))) == ["0", "1", "2", "3", "pool"]
    with pytest.raises(UsageError, match=r"^--model timm/resnet18\.neck: .*no attribute"):
        zoo.build("timm/resnet18.neck")
