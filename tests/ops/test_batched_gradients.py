"""Several gradients at once (is_grads_batched, jacobian(vectorize=True), vmap over autograd.grad) and gradients with
tangents: every backward gives eager's numbers."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.measure.oracle import by_modules, with_lively_norms

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def batched(y, inputs, grads):
    return torch.autograd.grad(y, inputs, grads, is_grads_batched=True)


def mapped(y, inputs, grads):
    return torch.func.vmap(lambda g: torch.autograd.grad(y, inputs, g, retain_graph=True))(grads)


def with_tangents(y, inputs, grads):
    """The tangents of the gradients for a gradient with a tangent, of which they are a linear function."""
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, inputs, forward_ad.make_dual(grads[0], grads[1]))
        return [forward_ad.unpack_dual(g).tangent for g in found]


def one_by_one(y, inputs, grads):
    found = [torch.autograd.grad(y, inputs, g, retain_graph=True) for g in grads]
    return [torch.stack(of_input) for of_input in zip(*found, strict=True)]


WAYS = {"is_grads_batched": batched, "vmap": mapped, "tangents": with_tangents}


REFERENCES = {
    name: importlib.import_module(f"resnet_fused.ops.{name}") for name in ("add_relu", "bn_relu", "conv_bn_relu")
}


class Op(nn.Module):
    """An op of this package, or its reference, as a module."""

    def __init__(self, name, training, residual, relu):
        super().__init__()
        self.name, self.options = name, {"training": training, "relu": relu}
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.residual = nn.Parameter(torch.randn(2, 4, 5, 6)) if residual else None
        self.by_modules = False

    def forward(self, x):
        norm = self.bn.weight, self.bn.bias, self.bn.running_mean.clone(), self.bn.running_var.clone()
        module = REFERENCES[self.name]
        if self.name == "add_relu":
            return (module.reference if self.by_modules else ops.add_relu)(x, self.residual)
        weight = () if self.name == "bn_relu" else (self.conv.weight,)
        padding = {"padding": 1} if weight else {}
        function = module.reference if self.by_modules else getattr(ops, self.name)
        return function(x, *weight, *norm, self.residual, **self.options, **padding)


def block(kind, **kwargs):
    projection = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    planes = 8 // kind.expansion
    return kind(4, planes, 2, projection, **kwargs)


def network(**kwargs):
    return resnet_fused.ResNet(resnet_fused.BasicBlock, [2, 1, 1, 1], num_classes=3, **kwargs)


def frozen(model):
    return model.eval()


def weights_frozen(model):
    """In evaluation, where the gradient of x alone is wanted."""
    return model.eval().requires_grad_(False)


CASES = {
    "add_relu": lambda: Op("add_relu", False, True, True),
    "bn_relu": lambda: Op("bn_relu", False, False, True),
    "bn_relu, residual": lambda: Op("bn_relu", True, True, True),
    "bn_relu, no relu": lambda: Op("bn_relu", True, False, False),
    "conv_bn_relu": lambda: Op("conv_bn_relu", True, True, True),
    "conv_bn_relu, evaluation": lambda: weights_frozen(Op("conv_bn_relu", False, True, True)),
    "BasicBlock": lambda: block(resnet_fused.BasicBlock),
    "Bottleneck": lambda: block(resnet_fused.Bottleneck),
    "BasicBlock, evaluation": lambda: frozen(block(resnet_fused.BasicBlock)),
    "Bottleneck, weights frozen": lambda: weights_frozen(block(resnet_fused.Bottleneck)),
    "network": network,
    "network, memory_efficient": lambda: network(memory_efficient=True),
    "network, evaluation": lambda: frozen(network()),
    "network, weights frozen": lambda: weights_frozen(network()),
}


def plain(model):
    """`model` by torch's own operators."""
    if isinstance(model, Op):
        model = copy.deepcopy(model)
        model.by_modules = True
        return model
    return by_modules(model)


def gradients(model, x, grads, way):
    x = x.detach().requires_grad_()
    with dispatch.record() as rows:
        y = model(x)
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    reached = torch.autograd.grad(y, inputs, grads[0], retain_graph=True, allow_unused=True)
    used = [t for t, g in zip(inputs, reached, strict=True) if g is not None]
    return way(y, used, grads), rows


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, way):
    torch.manual_seed(0)
    model = with_lively_norms(CASES[case]())
    x = torch.randn(2, 3, 40, 48) if "network" in case else torch.randn(2, 4, 5, 6)
    grads = torch.randn(2, *plain(model)(x).shape)
    ours, rows = gradients(copy.deepcopy(model), x, grads, WAYS[way])
    assert rows and all(choice.backend != "eager" for _, _, choice in rows)
    eager, no_rows = gradients(plain(model), x, grads, WAYS[way])
    exact, _ = gradients(plain(model).double(), x.double(), grads.double(), one_by_one)
    assert not no_rows and len(ours) == len(eager) == len(exact)
    for i, (a, b, oracle) in enumerate(zip(ours, eager, exact, strict=True)):
        oracle = oracle[1] if way == "tangents" else oracle
        off, eager_off = ((t.double() - oracle).norm() / oracle.norm() for t in (a, b))
        assert off <= 2 * eager_off + 2e-6, f"{i}: {off:.1e} beside eager's {eager_off:.1e}"


@pytest.mark.parametrize("training", [True, False])
def test_jacobian(training):
    block = with_lively_norms(resnet_fused.BasicBlock(2, 2)).train(training)
    for bn in (block.bn1, block.bn2):
        bn.track_running_stats = False
    x = torch.randn(2, 2, 3, 4)
    ours = torch.autograd.functional.jacobian(block, x, vectorize=True)
    eager = torch.autograd.functional.jacobian(by_modules(block), x, vectorize=True)
    exact = torch.autograd.functional.jacobian(by_modules(block).double(), x.double())
    off, eager_off = ((t - exact).norm() / exact.norm() for t in (ours, eager))
    assert off <= 2 * eager_off + 2e-6
