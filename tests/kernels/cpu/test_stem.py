"""The fused stem of the compiled library (convolution, shift, ReLU, max-pool), against float64 beside torch's error."""

import pytest
import torch
import torch.nn.functional as F

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native

# n, c, k, h, w, kernel, stride, padding: a ResNet's stem, every remainder of a vector and a panel, one pixel, more
# threads than rows, a stride above the kernel.
CASES = [
    (2, 3, 64, 224, 224, 7, 2, 3), (1, 3, 64, 64, 50, 7, 2, 3), (2, 3, 17, 33, 41, 7, 2, 3), (3, 1, 100, 9, 8, 3, 1, 1),
    (1, 4, 5, 7, 7, 7, 2, 0), (2, 3, 64, 1, 1, 7, 2, 3), (1, 3, 33, 50, 31, 5, 3, 2), (1, 5, 40, 13, 30, 2, 3, 1),
]  # fmt: skip


def problem(n, c, k, h, w, kernel, stride, padding, memory_format=torch.channels_last):
    torch.manual_seed(h)
    x = torch.randn(n, c, h, w).contiguous(memory_format=memory_format)
    return x, torch.randn(k, c, kernel, kernel) / (c * kernel**2) ** 0.5, torch.rand(k) + 0.5, torch.randn(k)


def stem(x, packed, shift, kernel, stride, padding):
    height, width = (((size + 2 * padding - kernel) // stride) // 2 + 1 for size in x.shape[2:])
    out = torch.empty(x.shape[0], len(shift), height, width).to(memory_format=torch.channels_last).fill_(torch.nan)
    ops.stem_conv_pool(x, packed, shift, out, kernel, stride, padding)
    return out


def reference(x, weight, shift, stride, padding):
    return F.max_pool2d(F.conv2d(x, weight, shift, stride=stride, padding=padding).relu(), 3, 2, 1)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, memory_format):
    x, weight, scale, shift = problem(*case, memory_format=memory_format)
    folded = weight.double() * scale.double().view(-1, 1, 1, 1)
    exact = reference(x.double(), folded, shift.double(), *case[6:])
    eager = reference(x, folded.float(), shift, *case[6:])
    got = stem(x, ops.stem_pack(weight, scale), shift, *case[5:])
    eps = torch.finfo(torch.float32).eps
    for norm in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt()):
        assert norm(got - exact) <= 2 * norm(eager - exact) + 2 * eps * norm(exact)


def test_same_bits_for_every_thread_count_format_and_slice():
    case = (3, 3, 48, 30, 44, 7, 2, 3)
    x, weight, scale, shift = problem(*case)
    packed, threads, results = ops.stem_pack(weight, scale), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(stem(x, packed, shift, *case[5:]))
    finally:
        torch.set_num_threads(threads)
    results.append(stem(x.contiguous(), packed, shift, *case[5:]))
    wide = torch.randn(3, 5, 30, 50)
    wide[:, 1:4, :, 3:47] = x
    results.append(stem(wide[:, 1:4, :, 3:47], packed, shift, *case[5:]))  # no copy of any layout is needed
    assert all(torch.equal(result, results[0]) for result in results)


def test_nan_and_infinity_as_in_eager():
    x, weight, _, shift = problem(1, 3, 40, 24, 24, 7, 2, 3)
    x[0, 0, 5, 6], x[0, 1, 20, 3], x[0, 2, 0, 23] = torch.nan, torch.inf, -torch.nan
    got, eager = stem(x, ops.stem_pack(weight, None), shift, 7, 2, 3), reference(x, weight, shift, 2, 3)
    assert eager.isnan().any() and torch.equal(got.isnan(), eager.isnan())
    assert torch.equal(got.isposinf(), eager.isposinf())


def test_batch_of_none():
    packed = ops.stem_pack(torch.randn(8, 3, 7, 7), None)
    assert stem(torch.randn(0, 3, 32, 32), packed, torch.zeros(8), 7, 2, 3).shape == (0, 8, 8, 8)


def test_messages():
    packed, x, shift = ops.stem_pack(torch.randn(8, 3, 7, 7), None), torch.randn(1, 3, 32, 32), torch.zeros(8)
    with pytest.raises(RuntimeError, match="x must be float32"):
        stem(x.double(), packed, shift, 7, 2, 3)
    with pytest.raises(RuntimeError, match="packed must be contiguous, of 4704"):
        stem(x, packed[1:], shift, 7, 2, 3)
    with pytest.raises(RuntimeError, match="kernel must be 1 to 16"):
        stem(x, packed, shift, 17, 2, 3)
    with pytest.raises(RuntimeError, match="out has the wrong shape"):
        ops.stem_conv_pool(x, packed, shift, torch.empty(1, 8, 16, 16), 7, 2, 3)
    with pytest.raises(RuntimeError, match="out must be dense channels_last"):
        ops.stem_conv_pool(x, packed, shift, torch.empty(1, 8, 8, 8), 7, 2, 3)
