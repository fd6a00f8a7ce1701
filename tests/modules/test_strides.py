"""Who sees a map sees eager's strides: hooks, slices of a network, feature extractors, gradients of the input."""

import copy

import pytest
import torch
from foreign import tv, tv_net
from torch import nn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.oracle import by_modules, with_lively_norms

LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
BLOCKS = {"BasicBlock": resnet_fused.BasicBlock, "Bottleneck": resnet_fused.Bottleneck}


def ours(block="BasicBlock", **kwargs):
    torch.manual_seed(0)
    return resnet_fused.ResNet(BLOCKS[block], [1, 2, 1, 1], num_classes=5, **kwargs)


def converted(block="BasicBlock", **kwargs):
    return resnet_fused.convert(tv_net(block, **kwargs))


class Attention(nn.Module):
    """Somebody's module, which reads its input through a view."""

    def forward(self, x):
        return x * x.view(*x.shape[:2], -1).mean(-1).sigmoid()[:, :, None, None]


def attended(block="BasicBlock"):
    model = ours(block)
    model.layer3 = nn.Sequential(model.layer3, Attention())
    return model


WATCHED = {
    "layers": lambda m: [m.layer1, m.layer2, m.layer3, m.layer4],
    "blocks": lambda m: [m.layer2[0], m.layer4[0]],
    "children": lambda m: [m.layer2[0].conv1, m.layer2[0].bn2, m.layer4[0].relu],
    "shortcut": lambda m: [m.layer3[0].downsample],
    "pools": lambda m: [m.maxpool, m.avgpool],
}
MODES = {
    "no_grad": lambda m: (m.eval(), torch.no_grad())[1],
    "weights frozen": lambda m: (m.eval().requires_grad_(False), torch.enable_grad())[1],
    "gradients": lambda m: (m.eval(), torch.enable_grad())[1],
    "training": lambda m: (m.train(), torch.enable_grad())[1],
}


def seen(model, watched, mode, x, pre):
    """The strides of the maps that go into (pre) or come out of the modules that `watched` names."""
    strides = []

    def note(module, args, out=None):
        t = args[0] if pre else out
        strides.append((tuple(t.shape), t.stride()))

    for module in watched(model):
        module.register_forward_pre_hook(note) if pre else module.register_forward_hook(note)
    with mode(model):
        model(x)
    return strides


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("watched", WATCHED)
@pytest.mark.parametrize("pre", [False, True], ids=["output", "input"])
def test_hooks(watched, mode, pre):
    for make, block in ((ours, "BasicBlock"), (ours, "Bottleneck"), (converted, "BasicBlock")):
        model = make(block)
        reference, x = by_modules(model), torch.randn(2, 3, 64, 48)
        strides = [seen(m, WATCHED[watched], MODES[mode], x, pre) for m in (model, reference)]
        assert strides[0] == strides[1] != []


@pytest.mark.parametrize("weights", [CONTIGUOUS, LAST], ids=["contiguous weights", "channels_last weights"])
@pytest.mark.parametrize("images", [CONTIGUOUS, LAST], ids=["contiguous images", "channels_last images"])
@pytest.mark.parametrize("mode", MODES)
def test_hooks_on_blocks_in_every_layout(weights, images, mode):
    for block in BLOCKS:
        model = ours(block).to(memory_format=weights)
        x = torch.randn(2, 3, 64, 48).contiguous(memory_format=images)
        strides = [seen(m, WATCHED["layers"], MODES[mode], x, False) for m in (model, by_modules(model))]
        assert strides[0] == strides[1] != []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [ours, converted])
@pytest.mark.parametrize("count", [4, 6, 8])
def test_slices(make, count, mode):
    model, x = make(), torch.randn(2, 3, 64, 48)
    strides = []
    for m in (model, by_modules(model)):
        head = nn.Sequential(*list(m.children())[:count])
        with MODES[mode](head), dispatch.record() as rows:
            strides.append(head(x).stride())
    assert strides[0] == strides[1]
    assert count == 4 or not rows  # the last is by_modules


def test_extracted_features():
    model, x = converted().eval(), torch.randn(2, 3, 64, 48)
    getter = tv._utils.IntermediateLayerGetter
    with torch.no_grad():
        for layers in ({"layer1": "a", "layer4": "b"}, {"maxpool": "a"}):
            maps = [getter(m, layers)(x).values() for m in (model, by_modules(model))]
            assert [t.stride() for t in maps[0]] == [t.stride() for t in maps[1]]


def test_a_view_in_a_hook_and_in_a_module():
    x = torch.randn(2, 3, 64, 64)
    for make in (converted, attended):
        model, found = make().eval(), []
        model.layer4.register_forward_hook(lambda m, args, out, found=found: found.append(out.view(2, -1)))
        with torch.no_grad():
            torch.testing.assert_close(model(x), by_modules(model)(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("images", [CONTIGUOUS, LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["weights frozen", "gradients", "training"])
def test_the_gradient_of_the_image(images, mode):
    strides = []
    model = with_lively_norms(ours())
    for m in (model, by_modules(model)):
        x = torch.randn(2, 3, 64, 48).contiguous(memory_format=images).requires_grad_()
        with MODES[mode](m):
            (grad,) = torch.autograd.grad(m(x).sum(), x)
        strides.append(grad.stride())
    assert strides[0] == strides[1]


def test_a_network_that_nobody_watches_runs_in_its_fastest_layout():
    """The fused kernels of a CPU read channels_last."""
    model, x = copy.deepcopy(ours()).eval(), torch.randn(2, 3, 64, 64)
    for edit, expected in (
        (lambda: None, True),
        (lambda: model.layer4.register_forward_hook(lambda *args: None), False),
    ):
        edit()
        with torch.no_grad(), dispatch.record() as rows:
            model(x)
        layouts = {memory_format for _, (_, _, memory_format), _ in rows}
        assert (LAST in layouts) is expected


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("path", ["fc", "layer2.0.conv1", "layer3"])
def test_a_part_that_was_traced(path):
    """Its class has no forward to ask."""
    model, x, inputs = ours().eval(), torch.randn(1, 3, 64, 64), []
    part = model.get_submodule(path)
    expected = by_modules(model)(x)
    handle = part.register_forward_pre_hook(lambda m, args: inputs.append(args))
    model(x)
    handle.remove()
    model.set_submodule(path, torch.jit.trace(part, inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_explain_reports_what_runs_without_it():
    """Its own hooks do not change the layout."""
    for model in (ours().eval(), converted().eval()):
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad(), dispatch.record() as rows:
            model(x)
        assert [op for op, _, _ in rows] == [row["op"] for row in resnet_fused.explain(model, x).rows]
