"""Gradients of gradients: of the fused ops, and of networks with a gradient penalty."""

import pytest
import torch
from cases import activation, channels
from foreign import fused_and_eager

from resnet_fused import dispatch, ops
from resnet_fused.ops.bn_relu import reference as bn_reference
from resnet_fused.ops.conv_bn_relu import reference as conv_reference


def second_order(function, tensors):
    """First and second derivatives of a function that is nonlinear in every one of `tensors`."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*tensors)
    first = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors, allow_unused=True)
    return [out, *first, *(torch.zeros_like(t) if g is None else g for g, t in zip(second, tensors, strict=True))]


def compare(ours, eager, tensors):
    with dispatch.record() as rows:
        found = second_order(ours, tensors)
    assert rows
    exact = second_order(eager, [t.double() for t in tensors])
    for a, b, o in zip(found, second_order(eager, tensors), exact, strict=True):
        assert (a - o).norm() <= 3 * (b - o).norm() + 1e-5 * o.norm() + 1e-6


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("conv", [{"padding": 1}, {"stride": 2, "padding": 1, "groups": 2}], ids=["plain", "strided"])
def test_convolution_with_frozen_statistics(conv, relu):
    x, (gamma, beta, mean, var) = activation((2, 4, 7, 6)), channels(8)
    weight = torch.randn(8, 4 // conv.get("groups", 1), 3, 3) * 0.3
    residual = torch.randn_like(conv_reference(x, weight, gamma, beta, mean, var, **conv))

    def of(function):
        def call(x, weight, beta, residual):
            params = [t.to(x.dtype) for t in (gamma, mean, var)]
            return function(x, weight, params[0], beta, *params[1:], residual, **conv, relu=relu)

        return call

    compare(of(ops.conv_bn_relu), of(conv_reference), [x, weight, beta, residual])


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training):
    x, (gamma, beta, mean, var) = activation((3, 8, 5, 4)), channels(8)
    residual = torch.randn_like(x)

    def of(function):
        def call(x, gamma, beta, residual):
            statistics = [t.to(x.dtype, copy=True) for t in (mean, var)]
            return function(x, gamma, beta, *statistics, residual, training=training)

        return call

    compare(of(ops.bn_relu), of(bn_reference), [x, gamma, beta, residual])


@pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])
@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen"])
def test_gradient_penalty(holder, mode):
    results = []
    for m in fused_and_eager(holder):
        m.train(mode == "training").requires_grad_(True)
        if mode == "frozen":
            for norm in (n for n in m.modules() if isinstance(n, torch.nn.BatchNorm2d)):
                norm.requires_grad_(False)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (grad,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        results.append([p.grad for p in m.parameters() if p.grad is not None])
    for ours, eager in zip(*results, strict=True):
        assert (ours - eager).norm() <= 2e-2 * eager.norm() + 1e-4
