"""What a program depends on and somebody changes later, through any door: the forward of the original class decides."""

import copy
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from foreign import Plain, fused_and_eager, lively, run, timm_net, tv_net, tv_resnet
from torch import nn

from resnet_fused import convert, unconvert
from resnet_fused.conversion.convert import is_converted

SLOPE = 1.0


def leak(x, slope):
    return torch.relu(x) * slope


class Configured(Plain):
    """Reads plain attributes: its own, of a child, of a helper object, of containers; and a global."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.alpha, self.options = 2, {"deep": [0.5]}
        self.config = types.SimpleNamespace(beta=3.0, unread=0)
        self.layers = nn.ModuleList([nn.Identity()])
        self.register_parameter("gain", None)
        self.unread, self.activation = 0, torch.relu

    def forward(self, x):
        x = x * self.alpha + self.config.beta * self.options["deep"][0]
        out = torch.relu(self.norm_a(self.first(x))) * self.scale
        out = self.activation(leak(F.pad(self.norm_b(self.second(out)), (0, 0, 0, 0)), SLOPE) * (1 + self.norm_b.eps))
        if self.gain is not None:
            out = out * self.gain
        for layer in self.layers:
            out = layer(out)
        return out


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


def set_in_place(block):
    block.options["deep"][0] = 7.0


CHANGES = {
    "attribute": (lambda b: setattr(b, "alpha", 5), "alpha is 5, and was 2 when the module was converted"),
    "type-of-an-attribute": (lambda b: setattr(b, "alpha", 2.5), "alpha is 2.5, and was 2"),
    "behind-its-back": (lambda b: b.__dict__.update(alpha=5), "alpha is 5, and was 2"),
    "inside-an-attribute": (set_in_place, "options is dict"),
    "of-a-helper": (lambda b: setattr(b.config, "beta", 0.0), "config.beta is 0.0, and was 3.0"),
    "of-a-child": (lambda b: setattr(b.norm_b, "eps", 0.5), "norm_b.eps is 0.5, and was 1e-05"),
    "parameter": (lambda b: b._parameters.update(gain=nn.Parameter(torch.tensor(3.0))), "gain is a tensor, and was None"),
    "behind-its-back-a-function": (lambda b: b.__dict__.update(activation=lambda x: x * 3), "activation is "),
    "longer-list": (lambda b: b.layers.append(Doubled()), "layers has other children than"),
    "class-attribute": (lambda b: setattr(Configured, "scale", 3.0), "scale was replaced or changed"),
    "method": (lambda b: setattr(Configured, "forward", Plain.forward), "forward was replaced or changed"),
    "global": (lambda b: globals().update(SLOPE=4.0), "SLOPE was replaced or changed"),
    "function": (lambda b: globals().update(leak=lambda x, slope: x), "leak was replaced or changed"),
    "function-of-torch": (lambda b: setattr(F, "pad", lambda x, pad: x * 3), "pad was replaced or changed"),
}  # fmt: skip


@pytest.fixture
def put_back(monkeypatch):
    for owner, name in ((Configured, "scale"), (Configured, "forward"), (F, "pad")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for name in ("SLOPE", "leak"):
        monkeypatch.setitem(globals(), name, globals()[name])


@pytest.mark.parametrize("again", [False, True], ids=["once", "converted-again"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name, again, put_back):
    change, reason = CHANGES[name]
    eager, x = lively(Configured), torch.randn(2, 8, 9, 9)
    block = convert(copy.deepcopy(eager), strict=True)
    torch.testing.assert_close(run(block, x)[0], run(eager, x)[0], rtol=1e-4, atol=1e-5)
    assert block.why_not_fused(x) is None
    change(block), change(eager)
    assert reason in block.why_not_fused(x)
    if again:
        assert convert(block) is block and block.why_not_fused(x) is None
    torch.testing.assert_close(run(block, x)[0], run(eager, x)[0], rtol=1e-4, atol=1e-5)


def test_a_function_that_is_set_is_traced():
    eager, x = lively(Configured), torch.randn(2, 8, 9, 9)
    block = convert(copy.deepcopy(eager), strict=True)
    for activation in (F.gelu, lambda x: x * 2):
        block.activation = eager.activation = activation
        torch.testing.assert_close(run(block, x)[0], run(eager, x)[0], rtol=1e-4, atol=1e-5)
    assert block.why_not_fused(x) is None


def test_what_forward_does_not_read_changes_nothing(monkeypatch):
    block, x = convert(lively(Configured), strict=True), torch.randn(2, 8, 9, 9)
    monkeypatch.setattr(torch.fx.Tracer, "trace", None)
    block.unread, block.config.unread, block.feature, block.calls = 1, 1, x, 0
    block.register_buffer("kept", x)
    del block.feature
    assert block.why_not_fused(x) is None


def test_torchvisions_network_whose_code_is_replaced(monkeypatch):
    """Its converted class runs the forward of ours, and notices that theirs is another one now."""
    model, x = convert(lively(tv_net), strict=True), torch.randn(1, 3, 40, 40)
    monkeypatch.setattr(tv_resnet.ResNet, "_forward_impl", lambda self, x: self.layer1(self.maxpool(self.conv1(x))))
    monkeypatch.setattr(tv_resnet.BasicBlock, "forward", lambda self, x: self.conv1(x) * 2)
    assert model.why_not_fused(x) == "_forward_impl was replaced or changed after the conversion"
    assert model.layer1[0].why_not_fused(x) == "forward was replaced or changed after the conversion"
    assert torch.equal(run(model, x)[0], run(unconvert(copy.deepcopy(model)), x)[0])


def small_sequence():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Tanh()
    return nn.Sequential(*parts)


SEQUENCES = {
    "append": lambda s: s.append(nn.MaxPool2d(2)),
    "extend": lambda s: s.extend([nn.MaxPool2d(2), nn.Tanh()]),
    "insert-at-the-end": lambda s: s.insert(len(s), nn.MaxPool2d(2)),
    "insert": lambda s: s.insert(1, nn.MaxPool2d(2)),
    "pop": lambda s: s.pop(2),
    "delete": lambda s: s.__delitem__(1),
    "delete-and-append": lambda s: (s.__delitem__(3), s.append(nn.MaxPool2d(2))),
    "item": lambda s: s.__setitem__(2, nn.Tanh()),
    "add-module": lambda s: s.add_module("pool", nn.MaxPool2d(2)),
    "modules": lambda s: s._modules.__setitem__("pool", nn.MaxPool2d(2)),
    "modules-pop": lambda s: s._modules.pop("4"),
    "modules-replaced": lambda s: s._modules.update({"2": nn.Tanh()}),
    "modules-in-another-order": lambda s: s._modules.update({"2": s._modules.pop("2")}),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_that_is_edited(name):
    eager, x = lively(small_sequence), torch.randn(2, 3, 16, 16)
    sequence = convert(copy.deepcopy(eager), strict=True)
    assert run(sequence, x)[1]
    SEQUENCES[name](eager), SEQUENCES[name](sequence)
    torch.testing.assert_close(run(sequence, x)[0], run(eager, x)[0], rtol=1e-4, atol=1e-5)


SETTINGS = {
    "stride": lambda b: setattr(b.conv1, "stride", (4, 4)) or setattr(b.downsample[0], "stride", (4, 4)),
    "stride-as-a-number": lambda b: setattr(b.conv1, "stride", 2),
    "padding": lambda b: setattr(b.conv2, "padding", (0, 0)) or setattr(b.conv1, "padding", (3, 3)),
    "padding-as-a-word": lambda b: setattr(b.conv2, "padding", "same"),
    "padding-as-a-number": lambda b: setattr(b.conv2, "padding", 1),
    "dilation": lambda b: setattr(b.conv2, "dilation", (2, 2)) or setattr(b.conv2, "padding", (2, 2)),
    "groups": lambda b: setattr(b.conv2, "groups", 4) or b.conv2.weight.set_(b.conv2.weight[:, :32].clone()),
    "eps": lambda b: setattr(b.bn1, "eps", 0.3),
    "momentum": lambda b: setattr(b.bn1, "momentum", 0.9),
    "track": lambda b: setattr(b.bn1, "track_running_stats", False),
    "not-in-place": lambda b: setattr(b.relu if hasattr(b, "relu") else b.act1, "inplace", False),
    "mode": lambda b: b.bn1.eval(),
}


@pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_children(name, holder):
    fused, eager = fused_and_eager(holder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for model in (fused, eager):
            SETTINGS[name](model.layer2[0])
        for training in (False, True):
            out, expected = (model.train(training)(x) for model in (fused, eager))
            torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    for (key, a), b in zip(fused.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=key)


def served(model, x, errors):
    try:
        with torch.no_grad():
            for _ in range(4):
                model(x)
    except Exception as e:
        errors.append(e)


@pytest.mark.parametrize("net", [tv_net, timm_net], ids=["torchvision", "timm"])
def test_maps_kept_on_blocks_by_threads(net, monkeypatch):
    model, x, errors = convert(lively(net), strict=True), torch.randn(1, 3, 32, 32), []
    monkeypatch.setattr(torch.fx.Tracer, "trace", None)
    for block in (model.layer1[0], model.layer2[0], model):
        block.register_forward_hook(lambda module, args, out: (setattr(module, "feature", out), None)[1])
        block.register_forward_pre_hook(lambda module, args: setattr(module, "calls", getattr(module, "calls", 0) + 1))
    threads = [threading.Thread(target=served, args=(model, x, errors)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and torch.equal(model.feature, run(model, x)[0]) and is_converted(model.layer1[0])
    assert model.layer1[0].why_not_fused(torch.randn(1, 64, 8, 8)) is None


class Tempered(Plain):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        out = super().forward(x)
        return out if self.gain is None else out * self.gain


def test_a_buffer_that_stops_being_a_tensor():
    """A program reads tensors at every call; None in their place is another forward."""
    block, x = convert(lively(Tempered), strict=True), torch.randn(2, 8, 9, 9)
    assert block.why_not_fused(x) is None
    block.gain = None
    assert block.why_not_fused(x) == "gain is None, and was a tensor when the module was converted"
    assert run(block, x)[0].shape == x.shape
