"""Classes: subclasses, shared blocks, and those that cannot be extended or copied by somebody else."""

import copy

import pytest
import torch
from foreign import CountsCalls, Plain, lively, run, shorten, timm, tv, tv_resnet
from nets import fused_sites
from torch import nn

import resnet_fused
from resnet_fused import convert, unconvert
from resnet_fused.conversion.convert import is_converted
from resnet_fused.conversion.program import Chain

X = (2, 3, 32, 32)


class WithMethods(tv_resnet.BasicBlock):
    """Another name and another method, the same forward."""

    def channels(self):
        return self.conv2.out_channels


class Scaled(tv_resnet.BasicBlock):
    """The same name of everything, another forward around the same one."""

    def forward(self, x):
        return super().forward(x) * 0.5


class Registered:
    """A base with a registry, as frameworks have it; and a metaclass."""

    names = []  # noqa: RUF012 (as registries are)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Registered.names.append(cls.__name__)


class Picky(Plain):
    def __init_subclass__(cls, *, licence, **kwargs):
        super().__init_subclass__(**kwargs)


class Meta(type):
    pass


class WithMeta(Registered, Plain, metaclass=Meta):
    pass


class OwnPickle(Plain):
    def __reduce__(self):
        return OwnPickle, ()


def net(block):
    torch.manual_seed(0)
    return shorten(tv_resnet.ResNet(block, [1, 1, 1, 1]))


@pytest.mark.parametrize("block", [WithMethods, Scaled])
def test_subclasses_of_torchvisions_blocks(block):
    model, x = lively(lambda: net(block)), torch.randn(X)
    eager, _ = run(model, x)
    convert(model, strict=True)
    out, rows = run(model, x)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-5)
    assert fused_sites(rows) == 6 and isinstance(model.layer1[0], block)
    assert block is Scaled or model.layer2[0].channels() == 128
    assert type(unconvert(model).layer1[0]) is block


class Named(nn.Sequential):
    """A sequence by another name, as torchvision's Conv2dNormActivation is."""


class Doubled(nn.Sequential):
    """A sequence that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def projecting(sequence):
    block = tv_resnet.BasicBlock(4, 8, downsample=sequence(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)))
    return lively(lambda: block)


@pytest.mark.parametrize(("sequence", "sites"), [(nn.Sequential, 3), (Named, 3), (Doubled, 2)])
def test_only_sequences_that_keep_their_forward_are_seen_through(sequence, sites):
    block, x = projecting(sequence), torch.randn(2, 4, 9, 9)
    eager, _ = run(block, x)
    out, rows = run(convert(block), x)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-5)
    assert fused_sites(rows) == sites
    assert (type(block).forward is resnet_fused.BasicBlock.forward) == (sequence is not Doubled)


def test_a_sequence_that_becomes_another():
    block, x = convert(lively(lambda: Plain(4, 8))), torch.randn(2, 4, 9, 9)
    assert block.why_not_fused(x) is None
    block._modules["short"] = Named(*block.short)
    assert block.why_not_fused(x) is None
    block._modules["short"] = Doubled(*block.short)
    assert block.why_not_fused(x) == "short is no sequence of 2 any more"
    torch.testing.assert_close(run(block, x)[0], run(unconvert(copy.deepcopy(block)), x)[0])


@pytest.mark.parametrize(("name", "convolutions", "sums"), [("regnet_x_400mf", 71, 22), ("regnet_y_400mf", 53, 16)])
def test_regnets_of_full_size(name, convolutions, sums):
    """Every convolution but those of squeeze and excitation, which have a bias, and every sum."""
    model = convert(getattr(tv, name)(), strict=True)
    steps = [step for m in model.modules() if is_converted(m) for step in type(m)._program.steps]
    chains = [step for step in steps if type(step) is Chain]
    assert (len(chains), sum(c.residual is not None for c in chains)) == (convolutions, sums)
    assert sum(type(m)._block is not None for m in model.modules() if is_converted(m)) >= sums


def test_a_class_with_a_metaclass_and_a_registry():
    block, h = lively(WithMeta), torch.randn(2, 8, 9, 9)
    eager, _ = run(block, h)
    convert(block, strict=True)
    assert type(type(block)) is Meta and is_converted(block)
    torch.testing.assert_close(run(copy.deepcopy(block), h)[0], eager, rtol=1e-4, atol=1e-5)


def patched():
    block = Plain()
    block.forward = lambda x: x
    return block


REFUSED = {
    "its class cannot be extended": lambda: Picky.__new__(Picky),
    "its class pickles itself in its own way": OwnPickle,
    "its forward was replaced on the instance": patched,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_left_alone(reason):
    module = REFUSED[reason]()
    if type(module) is Picky:
        Plain.__init__(module)
    holder = nn.Sequential(module)
    classes = [type(m) for m in holder.modules()]
    with pytest.raises(RuntimeError, match=reason):
        convert(holder, strict=True)
    assert [type(m) for m in convert(holder).modules()] == classes


def test_script_modules_are_no_candidates():
    scripted = torch.jit.script(tv_resnet.BasicBlock(8, 8))
    assert convert(nn.Sequential(scripted), strict=True)[0] is scripted and isinstance(scripted, torch.jit.ScriptModule)


def test_a_block_that_writes_into_its_own_buffer():
    block = lively(CountsCalls)
    convert(block, strict=True)
    assert block.scale == 0.5, "tracing writes nothing"
    out, rows = run(block, torch.randn(1, 8, 9, 9))
    assert block.scale == 1.5 and fused_sites(rows) == 2 and out.shape == (1, 8, 9, 9)


def test_a_block_that_is_used_twice():
    block = Plain()
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), block, block), torch.randn(X)
    lively(lambda: model)
    eager, _ = run(model, x)
    out, rows = run(convert(model, strict=True), x)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-5)
    assert fused_sites(rows) == 4 and model[1] is model[2]
    model.train()(x).sum().backward()
    assert block.norm_a.num_batches_tracked == 2


def test_two_forwards_before_one_backward():
    results, plain = [], lively(Plain)
    for m in (plain, convert(copy.deepcopy(plain))):
        m.train()
        torch.manual_seed(1)
        (m(torch.randn(2, 8, 9, 9)) * m(torch.randn(2, 8, 9, 9))).sum().backward()
        results.append([p.grad for p in m.parameters()])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-5


FULL = {
    "torchvision": ("resnet18", "resnet34", "resnet50", "resnet152", "wide_resnet50_2"),
    "timm": ("resnet18", "resnet26d", "resnet50d", "ecaresnet26t", "resnetblur50"),
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in FULL.items() for name in names])
def test_networks_of_full_size(package, name):
    """Every block and the stem, on the meta device: a conversion needs no data."""
    with torch.device("meta"):
        model = getattr(tv, name)() if package == "torchvision" else timm.create_model(name)
    blocks = sum(len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4))
    convert(model, strict=True)
    assert sum(map(is_converted, model.modules())) == blocks + 1
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_weights_fit_ours(name):
    theirs, ours = timm.create_model(name).eval(), getattr(resnet_fused, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_what_stands_inside_timms_batch_norm():
    module, x = convert(timm.layers.ConvNormAct(3, 8, 3).eval(), strict=True), torch.randn(1, 3, 6, 6)
    assert module.why_not_fused(x) is None
    module.bn.act.register_forward_hook(lambda *args: None)
    assert module.why_not_fused(x) == "bn has an activation with a hook"
    with pytest.raises(RuntimeError, match="bn drops by Dropout"):
        convert(timm.layers.ConvNormAct(3, 8, 3, drop_layer=nn.Dropout), strict=True)
