"""freeze(dtype="fp8"): what is refused, in one line, and a layer whose numbers are not those of e4m3 arithmetic, by name."""

import pytest
import torch
from fp8_cases import frozen, net

import resnet_fused
from resnet_fused import freeze
from resnet_fused.frozen.fp8 import layers as fp8_layers
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.kernels.e4m3 import E4M3
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.cifar import CifarResNet

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("measured_here")


class Doubles(CifarResNet):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.usefixtures("interpreted")
def test_what_cannot_be_frozen_is_refused_in_one_line(monkeypatch):
    model, x = net("zero_pad"), torch.randn(1, 3, 16, 16)
    for kwargs, message in (
        ({"exact": True}, "exact=True and fp8 exclude each other"),
        ({"batch": "any"}, "batch should be 'exact' or 'pad', not 'any'"),
        ({"graph": True}, "graph=True needs a model on a CUDA device, not on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            freeze(model, x, **{"dtype": E4M3, "graph": False} | kwargs)
    with pytest.raises(ValueError, match=r"non-empty \[N, 3, H, W\], got \(3, 16, 16\)"):
        frozen(model, x[0])
    with pytest.raises(ValueError, match=r"calibrated in evaluation mode, the model is in training mode"):
        frozen(CifarResNet(1), x)
    with pytest.raises(ValueError, match=r"the largest value at layer1.0.conv1 is nan on example_input"):
        frozen(model, x * float("nan"))
    with resnet_fused.backend("eager"):
        doubled = with_lively_norms(Doubles(1)).eval()
        torch.testing.assert_close(frozen(doubled, x)(x).float(), doubled(x), rtol=0.2, atol=0.1)
        with pytest.raises(ValueError, match="an fp8 engine cannot be written in torch's operators"):
            frozen(model, x).module()
        few = net("zero_pad")
        few.conv1 = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        few.bn1 = torch.nn.BatchNorm2d(8).eval()
        few.layer1 = torch.nn.Sequential(resnet_fused.BasicBlock(8, 8).eval())
        few.layer2, few.layer3, few.fc = torch.nn.Sequential(), torch.nn.Sequential(), torch.nn.Linear(8, 5)
        with pytest.raises(
            ValueError, match=r"no convolution can run in fp8, layer1.0.conv1: .* multiples of 16, not 8"
        ):
            frozen(few, x)
    monkeypatch.setattr(fp8.env, "TRITON_INTERPRET", False)
    with pytest.raises(
        ValueError, match=r"fp8 needs a CUDA device of compute capability 8.9 or later; this is a cpu device"
    ):
        frozen(model, x)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability, refused in (((8, 0), True), ((8, 9), False), ((9, 0), False), ((10, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        why = fp8.why_not(torch.device("cuda"))
        assert (why is not None) == refused and (why is None or why.endswith("this is NVIDIA A100 (8.0)"))


@pytest.mark.usefixtures("quick")
def test_a_layer_with_other_numbers_is_refused_by_name(device, monkeypatch):
    call = fp8_layers.Conv.__call__

    def forgetful(self, x, residual, out):
        """Takes the residual for one in another scale."""
        if self.step.name == "layer2.0.conv2":
            residual = (residual.float() * 0.9).to(residual.dtype)
        return call(self, x, residual, out)

    monkeypatch.setattr(fp8_layers.Conv, "__call__", forgetful)
    with pytest.raises(ValueError, match=r"layer2.0.conv2 \(triton, e4m3\) is .* times its rounding away from e4m3"):
        frozen(net("basic", device), torch.randn(2, 3, 32, 32, device=device))
