"""The CPU kernels on NaN, infinities, zeros of both signs and subnormals, and their conversions to 16 bits and back."""

import pytest
import torch

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_special_values_pass_as_in_eager(dtype):
    nan, inf = float("nan"), float("inf")
    tiny = torch.finfo(dtype).smallest_normal / 8
    values = torch.tensor([nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, tiny, -tiny, torch.finfo(dtype).max] * 4).to(dtype)
    x, residual = (t.reshape(1, 40, 40).contiguous() for t in torch.broadcast_tensors(values[:, None], values[None, :]))
    out, grad_in = torch.empty_like(x), torch.empty_like(x)
    ops.add_relu(x, residual, out)
    expected = torch.relu(x + residual)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7)) and torch.equal(out.signbit(), expected.signbit())
    ops.add_relu_backward(residual, x, grad_in)
    expected = torch.ops.aten.threshold_backward(residual, x, 0)
    assert torch.equal(grad_in.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_value_survives_and_every_rounding_is_to_nearest_even(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    out, zero, one = torch.empty_like(every), torch.zeros(1), torch.ones(1)
    identity = (zero, one, None, None, None)
    ops.bn_relu(every[:, None], *identity, out[:, None], None, False)
    assert torch.equal(out.isnan(), every.isnan()) and torch.equal(out.nan_to_num(7), every.nan_to_num(7))
    # Between neighbours: halfway, and a little to either side, by way of a scale in float32.
    finite = every[every.isfinite() & (every.abs() < torch.finfo(dtype).max / 2)][None, None]
    for factor in (1 + 2**-11, 1 + 2**-8, 1 + 2**-9, 1 - 2**-12, 1 + 2**-10 + 2**-20, 1 + 2**-8 - 2**-20, 2**-14, 3.0):
        out = torch.empty_like(finite)
        ops.bn_relu(finite, *identity[:1], torch.full((1,), factor), None, None, None, out, None, False)
        assert torch.equal(out, (finite.float() * torch.tensor(factor)).to(dtype)), factor
