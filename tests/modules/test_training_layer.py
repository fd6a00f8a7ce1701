"""A layer in training as one op: gradients of blocks that are added where they are read, and who gets blocks one by one."""

import pytest
import torch
from cases import FORMATS
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from training_cases import block, check, data, frozen, inside

import resnet_fused
from resnet_fused.measure.oracle import by_modules

LAST = torch.channels_last


class Layer(nn.Module):
    """What a ResNet does with one of its layers."""

    memory_efficient = False
    _fused_layer = resnet_fused.ResNet._fused_layer

    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self._fused_layer(self.layer, x)


def layer(first="identity"):
    """Three blocks, 16 channels in; 32 out where the first has a projection."""
    channels = 16 if first == "identity" else 32
    blocks = (
        block(first, stride=1 if first == "identity" else 2),
        block("identity", channels),
        block("identity", channels),
    )
    return Layer(*blocks).train()


def ops_in(graph):
    """How many training ops autograd has recorded on the way to a result."""
    seen, todo = set(), [graph]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return sum("Recorded" in node.name() for node in seen)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("first", ["identity", "projection"])
def test_float32(backend, device, first, memory_format):
    model = layer(first).to(device, memory_format=memory_format)
    x, grad = data(model, (3, 16, 9, 8), memory_format=memory_format, device=device)
    assert ops_in(model(x.clone().requires_grad_()).grad_fn) == 1
    check(model, x, grad)


def _only_affine_frozen(model):
    frozen(model)
    for name, p in model.named_parameters():
        if "bn" in name:
            p.requires_grad_(False)
    return model


@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(frozen, id="frozen"),
        pytest.param(lambda m: frozen(m.layer[1]), id="middle-frozen"),
        pytest.param(lambda m: m.layer[2].bn2.eval(), id="last-of-the-last-frozen"),
        pytest.param(lambda m: setattr(m.layer[1].bn2, "momentum", None), id="momentum-none"),
    ],
)
def test_modes(device, edit, memory_efficient):
    model = layer("projection").to(device, memory_format=LAST)
    model.memory_efficient = memory_efficient
    edit(model)
    x, grad = data(model, (3, 16, 9, 8), device=device)
    check(model, x, grad)


WANTED = [
    ("x",),
    ("layer.0.conv1.weight",),
    ("layer.0.bn1.bias",),
    ("layer.1.conv1.weight", "layer.0.downsample.0.weight"),
    ("layer.2.bn2.weight", "layer.0.downsample.1.bias"),
    ("x", "layer.1.conv2.weight", "layer.2.conv2.weight"),
]


@pytest.mark.parametrize("is_frozen", [False, True], ids=["train", "frozen"])
@pytest.mark.parametrize("wanted", WANTED, ids="+".join)
def test_any_subset_of_gradients(backend, device, wanted, is_frozen):
    """Frozen, and with the affine parameters unwanted, a batch norm has no sums to make: one pass adds and applies."""
    if backend != "native" and is_frozen:
        pytest.skip("the passes differ, the flow of gradients does not")
    model = layer("projection").to(device, memory_format=LAST)
    if is_frozen:
        frozen(model)
    x, grad = data(model, (2, 16, 7, 6), device=device)
    check(model, x, grad, wants=lambda name: name in wanted)


def test_what_nobody_wants_a_gradient_of_is_not_kept():
    """Leading blocks without gradients: the op of a layer would keep their maps."""
    model, x, kept = layer(), torch.randn(2, 16, 8, 8), []
    model.layer[0].requires_grad_(False)
    model.layer[1].requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = model(x)
    assert ops_in(out.grad_fn) == 1
    maps = {t.untyped_storage().data_ptr() for t in kept if t.dim() == 4 and t.shape == x.shape}
    assert len(maps) == 4  # x, z1, z2, y of the last block


class Skipped(resnet_fused.BasicBlock):
    def forward(self, x):
        return x  # as stochastic depth does


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_block_with_another_forward_runs_it(memory_efficient):
    model, x = layer(), torch.randn(2, 16, 8, 8)
    model.memory_efficient = memory_efficient
    model.layer[1].__class__ = Skipped
    out = model(x)
    assert ops_in(out.grad_fn) == 2
    twin = by_modules(Layer(model.layer[0], model.layer[2]).train())
    torch.testing.assert_close(out, twin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_a_wrapped_block_is_called(memory_efficient):
    """torch's checkpoint wrapper hands on attributes that it has not, those of the block among them."""
    model, x = layer(), torch.randn(2, 16, 8, 8)
    model.memory_efficient = memory_efficient
    model.layer[1] = checkpoint_wrapper(model.layer[1])
    assert ops_in(model(x).grad_fn) == 3
    grad = torch.randn(2, 16, 8, 8)
    plain = layer()
    for m in (model, plain):
        m(x).backward(grad)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_hooks_between_blocks_see_the_whole_gradient(memory_efficient):
    """A tensor hook on the output of a block gets the sum of both summands, and what it returns counts."""
    x, grad = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    found = []
    for model in (layer(), by_modules(layer())):
        model.memory_efficient = memory_efficient
        seen = []

        def watch(block, args, out, seen=seen):
            out.register_hook(lambda g: seen.append(g.clone()) or g * 2)

        def watch_module(block, grad_in, grad_out, seen=seen):
            seen.append(grad_out[0].clone())

        model.layer[0].register_forward_hook(watch)
        model.layer[1].register_full_backward_hook(watch_module)
        model(x).backward(grad)
        found.append([*seen, *(p.grad for p in model.parameters())])
    assert len(found[0]) == len(found[1]) > 2
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_one_addition_a_layer(monkeypatch, memory_efficient):
    """Of maps: where the layer's gradient leaves it. The other blocks add while they read."""
    model, x = layer(), torch.randn(2, 16, 8, 8, requires_grad=True)
    model.memory_efficient = memory_efficient
    out = model(x)
    with inside(monkeypatch) as names:
        out.backward(torch.randn_like(out))
    added = [name for name in names if name.startswith(("aten.add", "aten.threshold_backward", "aten.clone"))]
    assert added == ["aten.add_.Tensor"]
