"""freeze() of networks that are no ResNets, or not torchvision's: eager's numbers, containers and later weights."""

import copy
import importlib
import re
from collections import OrderedDict

import pytest
import torch
from foreign import lively, regnet, timm, timm_net, tv, tv_net
from programs import Opaque, network
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision_shim import torchvision

import resnet_fused
from resnet_fused.frozen import check
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.resnet import BasicBlock, ResNet

layers = timm.layers


@pytest.fixture(autouse=True)
def _quick_tuning(monkeypatch):
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)


def extractor():
    return torchvision.models.feature_extraction.create_feature_extractor(tv_net(), {"layer1": "a", "layer3": "b"})


def fpn():
    body = torchvision.models._utils.IntermediateLayerGetter(tv_net(), {f"layer{i}": str(i) for i in (2, 3, 4)})
    neck = torchvision.ops.FeaturePyramidNetwork([128, 256, 512], 16)
    return nn.Sequential(body, neck)


def deeplab():
    body = torchvision.models._utils.IntermediateLayerGetter(tv_net("Bottleneck"), {"layer4": "out"})
    return torchvision.models.segmentation.DeepLabV3(
        body, torchvision.models.segmentation.deeplabv3.DeepLabHead(2048, 3)
    )


def small(name, **options):
    return lambda: timm.create_model(name, num_classes=5, **options)


NETS = {
    "torchvision": tv_net,
    "timm": timm_net,
    "timm, squeeze and excitation": lambda: timm_net("Bottleneck", block_args={"attn_layer": "se"}),
    "timm, deep stem and average shortcut": lambda: timm_net(stem_type="deep", stem_width=8, avg_down=True),
    "timm, anti-aliasing": lambda: timm_net("Bottleneck", aa_layer=layers.BlurPool2d),
    "timm, dilated": lambda: timm_net("Bottleneck", output_stride=8),
    "timm, features only": small("resnet18", features_only=True),
    "RegNet": regnet,
    "RegNet, squeeze and excitation": lambda: regnet(se_ratio=0.25),
    "MobileNet v2": lambda: tv.mobilenet_v2(num_classes=5, width_mult=0.25),
    "MobileNet v3": small("mobilenetv3_small_050"),
    "EfficientNet": small("efficientnet_lite0"),
    "DenseNet": lambda: tv.densenet.DenseNet(8, (2, 2), 16, num_classes=5),
    "pre-activation": small("resnetv2_18"),
    "VGG": lambda: nn.Sequential(tv.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), nn.Flatten(1)),
    "GoogLeNet": lambda: nn.Sequential(
        importlib.import_module("torchvision.models.googlenet").Inception(3, 8, 8, 16, 4, 8, 8)
    ),
    "ShuffleNet": lambda: tv.shufflenet_v2_x0_5(num_classes=5),
    "feature extractor": extractor,
    "feature pyramid": fpn,
    "DeepLab": deeplab,
    "converted torchvision": lambda: resnet_fused.convert(tv_net()),
    "converted timm": lambda: resnet_fused.convert(timm_net("Bottleneck")),
    "SyncBatchNorm": lambda: tv_net(norm_layer=nn.SyncBatchNorm),
    "FrozenBatchNorm2d": lambda: tv_net(norm_layer=torchvision.ops.FrozenBatchNorm2d),
    "GroupNorm": lambda: tv_net(norm_layer=lambda c: nn.GroupNorm(4, c)),
}


def assert_eager(engine, model, *shapes, most=1.0):
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            theirs, before = model(x), x.clone()
        ours = engine(x)
        assert torch.equal(x, before)
        assert [t.shape for t in tree_leaves(ours)] == [t.shape for t in tree_leaves(theirs)]
        assert type(ours) is type(theirs) and (not isinstance(ours, dict) or list(ours) == list(theirs))
        assert check.errors(model, ours, x).share <= most


BF16_TOO = {"timm, squeeze and excitation": (), "DenseNet": ()}
BF16_TOO |= dict.fromkeys(("torchvision", "MobileNet v3", "feature pyramid"), pytest.mark.slow("as DenseNet"))
REST = pytest.mark.exhaustive("the same in another dtype")
CASES = [pytest.param(name, torch.float32, id=f"{name}-fp32") for name in NETS]
CASES += [pytest.param(name, torch.bfloat16, id=f"{name}-bf16", marks=BF16_TOO.get(name, REST)) for name in NETS]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_numbers_of_eager(name, dtype, tmp_path):
    model = lively(NETS[name])
    x = torch.randn(2, 3, 48, 64)
    engine = resnet_fused.freeze(model, x, dtype=dtype)
    assert_eager(engine, model, (2, 3, 48, 64), (1, 3, 48, 64), (3, 3, 65, 47))
    assert torch.equal(*(tree_leaves(engine(t))[-1] for t in (x, x.to(memory_format=torch.channels_last))))
    # A module has folded biases and runs by torch alone: its convolution of NCHW with a bias errs 1.35 times as much as
    # without (512 channels, oneDNN limited to AVX2), and a network then used 1.02 of the budget.
    assert check.errors(model, engine.module()(x.to(dtype)), x).share <= 1.25
    engine.save(tmp_path / "engine.safetensors")
    again = resnet_fused.load_engine(tmp_path / "engine.safetensors")
    assert all(map(torch.equal, tree_leaves(again(x)), tree_leaves(engine(x))))


@pytest.mark.parametrize("name", ["timm, squeeze and excitation", "MobileNet v3", "DenseNet", "feature pyramid"])
def test_the_gpu_engine_runs_them(name):
    """Its program, memory plan and replay, on a CPU and without a graph."""
    model, x = lively(NETS[name]), torch.randn(2, 3, 32, 32)
    engine = freeze_gpu(model, x, graph=False)
    assert_eager(engine, model, (2, 3, 32, 32))
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.mul_(0.5)
    engine.refresh()
    assert_eager(engine, model, (2, 3, 32, 32))


@pytest.mark.parametrize("many", [50, pytest.param(500, marks=pytest.mark.exhaustive("ten times as many networks"))])
def test_random_programs(many):
    found, refused = set(), []
    for seed in range(many):
        model = network(seed)
        try:
            engine = resnet_fused.freeze(model, torch.randn(2, 3, 10, 12))
        except TypeError as e:
            assert re.search(r"writes in place \(\w+\) into memory that another of its values shares", str(e)), (
                model.program
            )
            refused.append(seed)
            continue
        found |= {row["backend"] for row in engine.rows}
        try:
            assert_eager(engine, model, (2, 3, 10, 12), (1, 3, 9, 7), most=2.0)  # a few values: chance
        except AssertionError as e:
            raise AssertionError(f"network({seed}), {model.program}") from e
    assert len(refused) < many / 20
    assert any("winograd" in name for name in found) and "onednn" in found and "direct" in found


def test_values_that_are_written_in_place():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            z = self.a(x)
            same = z
            y = self.b(self.relu(z)) + same  # after the ReLU has written into it
            y += 1
            return y.relu_(), z

    model = Shared().eval()
    engine = resnet_fused.freeze(model, torch.randn(1, 3, 12, 12))
    assert_eager(engine, model, (2, 3, 12, 12))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda x: x.chunk(2, 1)[0].add_(1), r"\(add_\) into memory that another", id="chunk"),
        pytest.param(lambda x: x.data.mul_(2), r"\(mul_\) into memory that another", id="data"),
        pytest.param(lambda x: x.zero_(), "by zero_", id="no-such-function"),
    ],
)
def test_a_write_that_nothing_can_stand_for_is_refused(write, message):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = self.conv(x)
            write(x)
            return x

    with pytest.raises(TypeError, match=f"the forward of Writes writes in place {message}"):
        resnet_fused.freeze(Writes(), torch.randn(1, 3, 8, 8))


def test_parts_that_cannot_be_traced_run_as_they_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.odd, self.last = nn.Conv2d(3, 8, 3), Opaque(), nn.Conv2d(8, 8, 3)
            self.watched = nn.ReLU()

        def forward(self, x):
            return OrderedDict(out=self.last(self.watched(self.odd(self.conv(x)))))

    model, seen = Net().eval(), []
    model.watched.register_forward_hook(lambda *args: seen.append(1))
    engine = resnet_fused.freeze(model, torch.randn(1, 3, 12, 12))
    assert_eager(engine, model, (2, 3, 12, 12))
    seen.clear()
    engine(torch.randn(1, 3, 12, 12))
    assert seen == [1], "a module with a hook is called"
    notes = str(resnet_fused.explain(engine, None)).splitlines()[-2:]
    assert notes[0] == "torch runs Opaque, ReLU"
    assert notes[1].startswith("odd is called as it is: its forward ")


def test_a_forward_that_depends_on_values_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    with pytest.raises(TypeError, match="freeze: the forward of Net cannot be traced"):
        resnet_fused.freeze(Net(), torch.randn(1, 3, 8, 8))


def test_later_weights():
    model, other = (lively(lambda s=s: timm_net(block_args={"attn_layer": "se"})) for s in (0, 1))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    x = torch.randn(1, 3, 32, 32)
    engine, before = resnet_fused.freeze(model, x), copy.deepcopy(model.state_dict())
    first = engine(x)
    engine.refresh(other.state_dict())
    assert check.errors(other, engine(x), x).share <= 1 < check.errors(model, engine(x), x).share
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    for edit, message in (
        (lambda s: s.pop("fc.bias"), r"refresh: fc.bias is not in state_dict \(1 names differ\)"),
        (lambda s: s.update({"fc.bias": torch.zeros(3)}), r"refresh: fc.bias is \(3,\), the model has \(5,\)"),
    ):
        wrong = other.state_dict()
        edit(wrong)
        with pytest.raises(ValueError, match=message):
            engine.refresh(wrong)
    engine.refresh()
    assert torch.equal(engine(x), first)


def test_memory():
    model, x = lively(tv_net), torch.randn(1, 3, 64, 64)
    plain = sum(p.nbytes for p in model.parameters())
    sizes = {}
    for memory in ("fast", "small"):
        engine = resnet_fused.freeze(model, x, memory=memory)
        sizes[memory] = engine.memory["parameters"]
        assert engine.memory["activations"] > 0
    assert 0.9 * plain < sizes["small"] <= sizes["fast"] < 4.5 * plain
    with pytest.raises(ValueError, match="memory should be 'fast' or 'small', not 'tiny'"):
        resnet_fused.freeze(model, x, memory="tiny")


class Doubles(ResNet):
    def forward(self, x):
        return 2 * super().forward(x)


def test_another_forward_is_frozen_as_it_is():
    model = with_lively_norms(Doubles(BasicBlock, [1, 1, 1, 1])).eval()
    x = torch.randn(1, 3, 32, 32)
    assert_eager(resnet_fused.freeze(model, x), model, x.shape)


CALLS = []


class Counts(ResNet):
    def forward(self, x):
        CALLS.append(None)
        return min(len(CALLS), 2) * super().forward(x)


def test_a_forward_that_was_another_when_it_was_traced_is_refused():
    model = with_lively_norms(Counts(BasicBlock, [1, 1, 1, 1])).eval()
    with pytest.raises((TypeError, ValueError), match="the forward of Counts"):
        resnet_fused.freeze(model, torch.randn(1, 3, 32, 32))
