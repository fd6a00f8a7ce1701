"""Weights from files that people have, and the arguments that torchvision's constructors take for them."""

import pytest
import torch
from resnets import pair
from torchvision_shim import torchvision

import resnet_fused
from resnet_fused.measure.oracle import with_lively_norms

VARIANTS = ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]


def source():
    torch.manual_seed(0)
    return with_lively_norms(resnet_fused.resnet18(num_classes=3))


def loaded(tmp_path, contents):
    """(the network, what it was loaded from)"""
    torch.save(contents, tmp_path / "checkpoint.pth")
    return resnet_fused.resnet18(weights=tmp_path / "checkpoint.pth")


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


SAVED = [  # (prefix of the keys, keys above the state dict)
    ("", ["net"]),
    ("module.", ["model", "net"]),
    ("model.", ["state_dict"]),
    ("_orig_mod.", []),
    ("module.encoder_q.", ["state_dict"]),
    ("backbone.", ["model_state_dict"]),
    ("module._orig_mod.model.", ["model"]),
]


@pytest.mark.parametrize(("prefix", "under"), SAVED, ids=lambda v: v or "none" if isinstance(v, str) else "+".join(v))
def test_a_checkpoint_of_one_network_loads(tmp_path, prefix, under):
    expected = source().state_dict()
    contents = prefixed(expected, prefix)
    if prefix:
        contents["queue"] = torch.zeros(2)  # of another part of what was trained
    for key in reversed(under):
        contents = {key: contents, "epoch": 3, "optimizer": {"state": {}}}
    model = loaded(tmp_path, contents)
    assert model.fc.out_features == 3
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_counters_loads(tmp_path):
    expected = {k: v for k, v in source().state_dict().items() if not k.endswith("num_batches_tracked")}
    model = loaded(tmp_path, prefixed(expected, "module."))
    assert torch.equal(model.layer2[0].bn1.running_var, expected["layer2.0.bn1.running_var"])


REFUSED = {
    "two networks": (
        lambda s: prefixed(s, "encoder_q.") | prefixed(s, "encoder_k."),
        "holds 2 networks, under 'encoder_q.', 'encoder_k.': save one of them alone",
    ),
    "two state dicts": (lambda s: {"model": s, "net": s}, "holds several state dicts, under model, net"),
    "no fc": (
        lambda s: prefixed({k: v for k, v in s.items() if "fc" not in k}, "backbone."),
        "does not fit the model: missing fc.weight, fc.bias; found conv1.weight, bn1.weight, bn1.bias and",
    ),
    "another network": (
        lambda s: {"features.0.weight": torch.zeros(1)},
        "missing conv1.weight, bn1.weight, bn1.bias and 99 more; found features.0.weight",
    ),
    "a deeper network": (
        lambda s: s | {"layer1.2.conv1.weight": torch.zeros(1)},
        "unexpected layer1.2.conv1.weight",
    ),
    "a wider network": (lambda s: s | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight (64, 1, 7, 7) instead"),
    "numbers": (lambda s: {"epoch": 3, "loss": 0.5}, "no tensor under 'epoch', 'loss'"),
    "a list": (lambda s: [1], "holds no state dict (a dict of named tensors), but a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_says_what_does_not_fit(tmp_path, case):
    contents, message = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        loaded(tmp_path, contents(source().state_dict()))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def offline(monkeypatch, state):
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: state)


@pytest.mark.parametrize("call", [
    pytest.param(lambda make: make(pretrained=True), id="keyword"),
    pytest.param(lambda make: make(True), id="position"),
    pytest.param(lambda make: make(weights=True), id="weights"),
])  # fmt: skip
def test_pretrained_is_understood(monkeypatch, call):
    expected = with_lively_norms(resnet_fused.resnet18()).state_dict()
    offline(monkeypatch, expected)
    with pytest.warns(UserWarning, match="pretrained=True is deprecated, use weights='IMAGENET1K_V1'") as warned:
        model = call(resnet_fused.resnet18)
    assert warned[0].filename == __file__
    assert torch.equal(model.bn1.running_var, expected["bn1.running_var"])


def test_not_pretrained_is_understood():
    with pytest.warns(UserWarning, match="pretrained=False is deprecated, use weights=None"):
        assert resnet_fused.resnet20(pretrained=False).fc.out_features == 10
    with pytest.raises(ValueError, match="weights='DEFAULT' and pretrained=True exclude each other"):
        resnet_fused.resnet18(weights="DEFAULT", pretrained=True)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.DEFAULT"])
def test_names_of_weights(monkeypatch, weights):
    expected = with_lively_norms(resnet_fused.resnet18()).state_dict()
    offline(monkeypatch, expected)
    assert torch.equal(resnet_fused.resnet18(weights).bn1.weight, expected["bn1.weight"])


def test_weights_of_another_network_are_refused(monkeypatch):
    offline(monkeypatch, {})
    for weights in (torchvision.models.ResNet50_Weights.IMAGENET1K_V1, "ResNet50_Weights.IMAGENET1K_V1"):
        with pytest.raises(ValueError, match="nor one of torchvision's IMAGENET1K_V1, DEFAULT of ResNet18_Weights"):
            resnet_fused.resnet18(weights=weights)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_have_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = (getattr(m, name)(num_classes=7) for m in (resnet_fused, torchvision.models))
    assert repr(ours) == repr(theirs)
    shapes = [[(k, v.shape) for k, v in m.state_dict().items()] for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    with torch.device("meta"):
        whole = getattr(resnet_fused, name)()
    assert f"{sum(p.numel() for p in whole.parameters()):,} parameters" in _documented(name)
    with pytest.raises(ValueError, match=f"{name}: width_per_group should be .*, got 3"):
        getattr(resnet_fused, name)(width_per_group=3)


def _documented(name):
    """The docstring's sentence, from its source: python -OO has no docstrings."""
    path = resnet_fused.models.variants.__file__
    with open(path) as file:
        return file.read().partition(f"def {name}(")[2].partition("def ")[0]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_a_variant_computes_what_torchvisions_does(name):
    ours, theirs = pair(name, num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        a, b = (m.train(training)(x) for m in (ours, theirs))
        assert (a - b).norm() <= 1e-3 * b.norm()
    a.square().sum().backward(), b.square().sum().backward()
    a, b = (m.layer3[0].conv2.weight.grad for m in (ours, theirs))
    assert (a - b).norm() <= 1e-3 * b.norm()
