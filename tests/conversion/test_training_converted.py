"""Other people's blocks in training: what is exactly a residual block runs as one op, whatever its forward looks like."""

import copy

import pytest
import torch
from foreign import OutOfPlace, Plain, regnet, timm, timm_net
from torch import nn
from training_cases import check, data, frozen, inside

import resnet_fused
from resnet_fused.conversion.residual import residual_block
from resnet_fused.measure.oracle import with_lively_norms

LAST = torch.channels_last
Basic, Bottleneck = timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck


def projection(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ShortcutFirst(Plain):
    """The sum cannot be fused with the shortcut, whose convolution would run later than it is written: with the main path."""

    def forward(self, x):
        short = self.short(x)
        out = self.norm_b(self.second(torch.relu(self.norm_a(self.first(x)))))
        return nn.functional.relu(out + short)


BLOCKS = {
    "timm-basic": lambda: Basic(16, 16),
    "timm-basic-projection": lambda: Basic(16, 32, 2, projection(16, 32, 2)),
    "timm-bottleneck": lambda: Bottleneck(16, 8, 1, projection(16, 32)),
    "timm-grouped": lambda: Bottleneck(32, 8, cardinality=4, base_width=64),
    "empty-shortcut": lambda: Plain(16, 16),
    "projection": lambda: Plain(16, 32, 2),
    "out-of-place": lambda: OutOfPlace(16, 16),
    "sum-at-the-shortcut": lambda: OutOfPlace(16, 32, 2),
    "shortcut-first": lambda: ShortcutFirst(16, 32, 2),
    "regnet": lambda: regnet().trunk_output[0][0],
}


def converted(name):
    torch.manual_seed(3)
    model = with_lively_norms(BLOCKS[name]().train())
    resnet_fused.convert(model, strict=True)
    return model


def runs_as_one_op(model, x):
    out = model(x.clone().requires_grad_())
    return "Recorded" in out.grad_fn.name()


def width(name):
    return {"timm-grouped": 32, "regnet": 8}.get(name, 16)


@pytest.mark.parametrize("name", BLOCKS)
def test_float32(name):
    model = converted(name).to(memory_format=LAST)
    x, grad = data(model, (3, width(name), 9, 8))
    assert runs_as_one_op(model, x)
    check(model, x, grad)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(frozen, id="frozen"),
        pytest.param(lambda m: m.bn1.eval(), id="first-frozen"),
        pytest.param(lambda m: m.downsample[1].eval(), id="projection-frozen"),
        pytest.param(lambda m: setattr(m.bn2, "momentum", None), id="momentum-none"),
        pytest.param(lambda m: m.conv1.requires_grad_(False), id="no-gradient-of-conv1"),
    ],
)
def test_modes(edit):
    model = converted("timm-basic-projection")
    edit(model)
    x, grad = data(model, (3, 16, 9, 8), memory_format=torch.contiguous_format)
    assert runs_as_one_op(model, x)
    check(model, x, grad)


def blur(model):
    model.aa = nn.AvgPool2d(1)


def biased(model):
    model.conv1 = nn.Conv2d(16, 16, 3, padding=1)


def hooked(model):
    model.aa.register_forward_hook(lambda *_: None)


def behind_its_back(model):
    model._modules["aa"] = nn.Hardtanh(-0.5, 0.5)  # no __setattr__ matches anew


@pytest.mark.parametrize("edit", [blur, biased, hooked, behind_its_back])
def test_what_stops_being_a_block_is_none(edit):
    model = converted("timm-basic")
    edit(model)
    plain = resnet_fused.unconvert(copy.deepcopy(model))
    x = torch.randn(2, 16, 7, 7)
    assert not runs_as_one_op(model, x)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


class Chained(Plain):
    """relu(conv) twice without a sum, and the map between them is wanted as well."""

    def forward(self, x):
        first = nn.functional.relu(self.norm_a(self.first(x)))
        return first, nn.functional.relu(self.norm_b(self.second(first)) + self.short(x))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: Chained(16, 32, 2), id="two-results"),
        pytest.param(lambda: Bottleneck(32, 8, attn_layer="se"), id="squeeze-and-excitation"),
        pytest.param(lambda: timm_net(stem_type="deep", stem_width=32), id="a-network"),
    ],
)
def test_what_is_no_residual_block(build):
    model = resnet_fused.convert(build())
    assert type(model)._program is not None and residual_block(type(model)._program) is None


def test_evaluation_runs_as_before(monkeypatch):
    model = converted("timm-basic").eval()
    with torch.no_grad(), inside(monkeypatch) as names:
        model(torch.randn(2, 16, 8, 8))
    assert not any("bn_stats" in name for name in names)


def test_less_is_kept_for_the_backward():
    """x, z1, z2 and y, not relu1: 0.8 of what eager keeps for a block alone."""
    kept = []
    for model in (converted("empty-shortcut"), resnet_fused.unconvert(converted("empty-shortcut"))):
        own = {t.untyped_storage().data_ptr() for t in model.parameters()}
        found = {}

        def pack(t, own=own, found=found):
            if t.untyped_storage().data_ptr() not in own:
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(torch.randn(2, 16, 16, 16))
        kept.append(sum(found.values()))
        del out
    assert kept[0] < 0.82 * kept[1]
