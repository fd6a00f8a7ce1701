"""conv_bn_relu_pair of csrc/cuda on the emulator: a block's first convolution and its projection, in one launch or two."""

import conv_emulated as emulated
import pytest
import torch
import torch.nn.functional as F
from conv_emulated import LAST, MATHS
from emulator import build

from resnet_fused.measure.accuracy import assert_within_budget, exact

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
EPS, EPS2 = 1e-3, 0.1


def side(x, k, r, stride, padding):
    c = x.shape[1]
    weight = (torch.randn(k, c, r, r) / (c * r * r) ** 0.5).to(x.dtype).contiguous(memory_format=LAST)
    norm = torch.randn(k) * 0.5, torch.rand(k) + 0.1, torch.randn(k), torch.randn(k)
    z = F.conv2d(x, weight, None, stride, padding)
    out = torch.full_like(z, torch.nan).contiguous(memory_format=LAST)
    return weight, norm, out, stride, padding


def expected(x, weight, norm, stride, padding, eps, relu, convert):
    x, weight, norm = convert(x), convert(weight), [convert(t) for t in norm]
    y = F.batch_norm(F.conv2d(x, weight, None, stride, padding), *norm, False, 0, eps)
    return torch.relu(y) if relu else y


# x, k, r of the first, stride, k of the projection
CASES = {
    "stride 2": ((2, 64, 9, 12), 72, 3, 2, 72),
    "stride 1, wider projection": ((1, 64, 7, 9), 64, 1, 1, 256),
    "split in slices": ((1, 256, 6, 6), 64, 3, 2, 64),
    "ragged channels": ((1, 65, 9, 7), 40, 3, 2, 40),
    "one pixel": ((1, 64, 1, 1), 64, 3, 1, 64),
}


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name, math):
    shape, k, r, stride, k2 = CASES[name]
    dtype, tf32 = MATHS[math]
    x = torch.randn(shape).to(dtype).contiguous(memory_format=LAST)
    sides = [side(x, k, r, stride, r // 2), side(x, k2, 1, stride, 0)]
    (weight, norm, out, *_), (weight2, norm2, out2, *_) = sides
    build.load().conv_bn_relu_pair(
        x, weight, *norm, out, [stride] * 2, [r // 2] * 2, [1, 1], EPS,
        weight2, *norm2, out2, [stride] * 2, [0, 0], EPS2, tf32,
    )  # fmt: skip
    for (weight, norm, out, stride, padding), eps, relu in zip(sides, (EPS, EPS2), (True, False), strict=True):
        oracle, eager = (
            expected(x, weight, norm, stride, padding, eps, relu, convert) for convert in (exact, lambda t: t)
        )
        if tf32:
            torch.testing.assert_close(out.double(), oracle, rtol=2e-3, atol=2e-2)
        else:
            assert_within_budget(out, eager, oracle, "one side")


def plans(n, c, size, dtype=torch.bfloat16, **kwargs):
    conv = emulated.sizes((n, c, size, size), (2 * c, c, 3, 3), 2, 1)
    return emulated.pair_plan(dtype, conv, emulated.sizes((n, c, size, size), (2 * c, c, 1, 1), 2), **kwargs)


def test_the_cases_take_both_paths():
    """Or the tests above would compare one launch twice."""
    slices = set()
    for name, (shape, k, r, stride, k2) in CASES.items():
        first = emulated.sizes(shape, (k, shape[1], r, r), stride, r // 2)
        plan = emulated.pair_plan(torch.float16, first, emulated.sizes(shape, (k2, shape[1], 1, 1), stride))
        assert bool(plan.together) is (name != "ragged channels"), name
        slices.add(plan.splits > 1)
    assert slices == {True, False}


def test_together_where_the_model_says_so():
    for c, size in ((64, 56), (128, 28), (256, 14)):
        for n in (1, 8, 32, 256):
            plan = plans(n, c, size)
            assert bool(plan.together) is (plan.clocks < plan.clocks_apart)
        assert plans(1, c, size).together
        assert not plans(1, c, size, aligned=False).together  # the masked loader has no kernel for two


def test_what_it_refuses():
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=LAST)
    weight, norm, out, *_ = side(x, 16, 3, 1, 1)
    weight2, norm2, out2, *_ = side(x, 16, 1, 1, 0)
    with pytest.raises(
        RuntimeError, match=r"conv_bn_relu_pair: out has shape \[1, 16, 4, 4\].*result is \[1, 16, 2, 2\]"
    ):
        build.load().conv_bn_relu_pair(
            x, weight, *norm, out, [1, 1], [1, 1], [1, 1], EPS, weight2, *norm2, out2, [2, 2], [0, 0], EPS
        )
