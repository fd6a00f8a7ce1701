"""pool_linear of csrc/cuda against float64: global average pool and linear layer in one launch."""

import pytest
import torch
import torch.nn.functional as F
from emulator import build

from resnet_fused.measure.accuracy import assert_within_budget, exact

LAST = torch.channels_last


def arguments(dtype, n, c, h, w, k, bias=True):
    x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=LAST)
    weight, b = (torch.randn(k, c) / c**0.5).to(dtype), torch.randn(k).to(dtype)
    return x, weight, b if bias else None, torch.full((n, k), torch.nan, dtype=dtype)


def expected(x, weight, bias):
    return F.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), weight, bias)


def check(ops, x, weight, bias, out):
    ops.pool_linear(x, weight, bias, out)
    oracle = expected(*map(exact, (x, weight, bias)))
    assert_within_budget(out, expected(x, weight, bias), oracle, "pool_linear", channel_dim=None)


# n, c, h, w, k
SHAPES = {
    "one image": (1, 512, 7, 7, 37),
    "few images": (5, 64, 7, 7, 50),
    "several pixels at once": (1, 16, 9, 5, 10),
    "one pixel": (3, 64, 1, 1, 16),
    "ragged channels": (3, 37, 4, 5, 19),
    "bottleneck": (2, 2048, 2, 2, 12),
    "one of each": (1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(ops, name, dtype):
    check(ops, *arguments(dtype, *SHAPES[name]))


def test_both_numbers_of_images_a_block_takes(ops, last_launch):
    blocks = {}
    for n in (1, 256):
        check(ops, *arguments(torch.float16, n, 16, 1, 2, 40))
        blocks[n] = last_launch()
    assert blocks[1][1] == 1 and blocks[256][1] == 64, "one image, and four a block"


def test_without_bias_and_askew(ops):
    check(ops, *arguments(torch.float16, 2, 32, 3, 3, 9, bias=False))
    x, weight, bias, out = arguments(torch.float16, 2, 32, 3, 3, 9)
    buffer = torch.empty(x.numel() + 1, dtype=x.dtype)
    check(ops, buffer[1:].as_strided(x.shape, x.stride()).copy_(x), weight, bias, out)


def test_a_large_mean_and_what_is_not_finite(ops):
    x, weight, bias, out = arguments(torch.float32, 2, 8, 4, 4, 5)
    check(ops, x + 1000, weight, bias, out)
    x[0, 3, 1, 1], x[1, 0, 0, 0] = torch.nan, torch.inf
    check(ops, x, weight, bias, out)
    assert out[0].isnan().all() and out[1].isinf().all()


def test_same_bits_whatever_the_schedule(ops, last_launch):
    x, weight, bias, out = arguments(torch.float32, 6, 64, 5, 5, 33)
    results = []
    for seed, policy in [(0, 0), (1, 0), (0, 1), (7, 1)]:
        build.configure(seed, policy)
        ops.pool_linear(x, weight, bias, out)
        results.append(out.clone())
    build.configure()
    assert all(torch.equal(r, results[0]) for r in results)


def changed(**changes):
    x, weight, bias, out = arguments(torch.float32, 2, 8, 3, 3, 5)
    return {"x": x, "weight": weight, "bias": bias, "out": out} | changes


BAD = [
    (lambda: {"x": torch.randn(2, 8, 3, 3)}, "x has strides .*, but must be channels_last"),
    (
        lambda: {"x": torch.randn(2, 8)},
        r"x has shape \[2, 8\] and weight \[5, 8\], but they must have 4 and 2 dimensions",
    ),
    (lambda: {"weight": torch.randn(5, 7)}, r"weight has shape \[5, 7\], but x has 8 channels"),
    (lambda: {"weight": torch.randn(5, 8).half()}, "weight has another dtype than x"),
    (lambda: {"weight": torch.randn(8, 5).T}, "weight has strides .*, but must be contiguous"),
    (lambda: {"bias": torch.randn(4)}, r"bias must have shape \[5\]"),
    (lambda: {"out": torch.empty(2, 4)}, r"out has shape \[2, 4\], but the result is \[2, 5\]"),
    (lambda: {"x": torch.empty(2, 8, 0, 3)}, r"x has no values to average: shape \[2, 8, 0, 3\]"),
    (
        lambda: {"x": torch.randn(2, 2**15, 1, 1).to(memory_format=LAST), "weight": torch.randn(5, 2**15)},
        "takes up to 24576 channels, got 32768",
    ),
]


@pytest.mark.parametrize("changes, message", BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_named(ops, changes, message):
    with pytest.raises(RuntimeError, match="^pool_linear: " + message):
        ops.pool_linear(**changed(**changes()))


def test_an_empty_batch_launches_nothing(ops):
    ops.pool_linear(**changed(x=torch.empty(0, 8, 3, 3), out=torch.empty(0, 5)))
