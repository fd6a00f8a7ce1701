"""add_relu: relu(x + residual) and its gradient, on every backend."""

import pytest
import torch
from cases import ACTIVATIONS, DTYPES, FORMATS, activation

from resnet_fused import ops
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.add_relu import reference


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ACTIVATIONS)
def test_forward_and_backward(backend, numbers_count, device, shape, dtype, memory_format):
    numbers_count(dtype)
    x = activation(shape, dtype, memory_format, device).requires_grad_()
    r = activation(shape, dtype, memory_format, device).requires_grad_()
    grad = activation(shape, dtype, memory_format, device)
    out = ops.add_relu(x, r)
    assert out.stride() == x.stride() and out.dtype == dtype
    assert_within_budget(out, reference(x, r), reference(exact(x), exact(r)), "out")
    grad_x, grad_r = torch.autograd.grad(out, (x, r), grad)
    expected = torch.where(out <= 0, torch.zeros_like(grad), grad)
    assert torch.equal(grad_x, expected) and torch.equal(grad_r, expected)
    assert grad_x.stride() == x.stride()


def test_nan_and_negative_zero(backend, device):
    x = torch.tensor([float("nan"), -0.0, -1.0, float("inf"), 1e-42], device=device).requires_grad_()
    out = ops.add_relu(x, torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0], device=device))
    expected = torch.relu(x + torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0], device=device))
    assert torch.equal(out.isnan(), expected.isnan()) and torch.equal(out.signbit(), expected.signbit())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())
    assert torch.equal(
        torch.autograd.grad(out, x, torch.ones_like(out))[0], torch.tensor([1.0, 0, 0, 1, 1], device=device)
    )


def test_the_mask_is_that_of_the_rounded_output(backend, device):
    """1e-9 rounds to zero in float16: eager lets no gradient through there."""
    x = torch.full((4,), 6e-8, dtype=torch.float16, device=device).requires_grad_()
    out = ops.add_relu(x, torch.full_like(x, -6e-8).detach())
    assert torch.autograd.grad(out.sum(), x)[0].eq(0).all()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda t: t[:, ::2], id="sliced-channels"),
        pytest.param(lambda t: t[:, :, 1:, :-1], id="sliced-pixels"),
        pytest.param(lambda t: t[:1].expand_as(t), id="expanded"),
        pytest.param(lambda t: t.permute(0, 1, 3, 2), id="permuted"),
    ],
)
def test_any_strides(backend, device, make):
    x = make(activation((4, 6, 5, 5), device=device)).requires_grad_()
    r = make(activation((4, 6, 5, 5), torch.float32, torch.contiguous_format, device))
    out = ops.add_relu(x, r)
    assert torch.equal(out, torch.relu(x + r)) and out.stride() == torch.empty_like(x).stride()
    out.sum().backward()  # a gradient with stride 0
    assert torch.equal(x.grad, (out > 0).float())


def test_more_elements_than_a_block(backend, device):
    x, r = torch.randn(70_001, device=device), torch.randn(70_001, device=device)
    assert torch.equal(ops.add_relu(x, r), torch.relu(x + r))
    assert torch.equal(ops.add_relu(x[1:], r[1:]), torch.relu(x[1:] + r[1:]))  # 4 bytes off a 16-byte boundary


def test_what_torch_alone_can_add_goes_through_torch(device):
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, device=device)
    wide = torch.randn(3, 1, 1, device=device)
    out = ops.add_relu(x, wide)
    assert out.dtype == torch.bfloat16 and torch.equal(out, torch.relu(x.clone().add_(wide)))
    with pytest.raises(RuntimeError, match=r"residual has shape \(2, 3, 4, 4\), the result \(3, 1, 1\)"):
        ops.add_relu(wide, torch.randn(2, 3, 4, 4, device=device))
    assert ops.add_relu(torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)


def test_double_backward_and_gradcheck(device):
    x = torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_()
    r = torch.randn(3, 4, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(ops.add_relu, (x, r)) and torch.autograd.gradgradcheck(ops.add_relu, (x, r))
    x, r = (t.detach().float().requires_grad_() for t in (x, r))
    (g,) = torch.autograd.grad(ops.add_relu(x, r).square().sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.sum(), x)
    assert torch.equal(gg, 2.0 * (x + r > 0))
