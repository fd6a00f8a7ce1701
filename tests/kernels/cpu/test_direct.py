"""Direct convolutions on vectors (csrc/cpu/direct/isa/kernels_f32_bf16.cpp), against float64 beside torch's own error.

The loops around the kernels are those of the matrix unit, and so are the shapes: amx_cases.py.
"""

import functools

import amx_cases
import pytest
import torch
from amx_cases import CASES, DTYPE_IDS, DTYPES, between_sentinels, check_numbers, problem

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
# What direct/plan.cpp does for vectors alone: calls of 56 or 24 pixels, a line of 16 channels in float32, weights above
# 512 KB, which a panel at a time reads.
OWN = {
    "channels-16-exactly": (1, 16, 32, 7, 8, 1, 1, 1, 0, 1),
    "channels-17": (2, 17, 33, 8, 7, 3, 3, 1, 1, 1),
    "pixels-57": (1, 16, 8, 3, 19, 1, 1, 1, 0, 1),
    "many-weights": (2, 200, 300, 6, 5, 3, 3, 2, 1, 1),
    "many-weights-split": (1, 512, 300, 3, 3, 2, 2, 1, 0, 1),
    # 1x1 and stride 1: csrc/cpu/direct/in_place.cpp
    "in-place-odd": (2, 37, 41, 5, 9, 1, 1, 1, 0, 1),
    "in-place-even": (2, 38, 50, 5, 9, 1, 1, 1, 0, 1),
    "in-place-few-filters": (1, 24, 10, 13, 17, 1, 1, 1, 0, 1),
    "in-place-long-sums": (3, 650, 20, 4, 7, 1, 1, 1, 0, 1),
    "in-place-few-pixels": (2, 40, 200, 1, 1, 1, 1, 1, 0, 1),
    "in-place-many-weights": (2, 144, 300, 6, 7, 1, 1, 1, 0, 1),
    "pixels-4-KB-apart": (1, 2048, 40, 3, 5, 1, 1, 1, 0, 1),
}  # fmt: skip
ALL = {**{name: case for name, case in CASES.items() if not name.startswith("resnet")}, **OWN}


run = functools.partial(amx_cases.run, unit="direct")


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_against_float64(case, dtype):
    check_numbers(case, dtype, "direct")


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "name",
    [
        "two-chunks-of-channels", "images-in-groups", "split-panels", "many-weights", "many-weights-split",
        "in-place-long-sums", "in-place-few-pixels", "in-place-many-weights",
    ],
)  # fmt: skip
def test_same_bits_for_every_thread_count_and_batch(name, dtype):
    x, weight, shift, residual, _ = problem(ALL[name], dtype)
    packed, results, before = library.namespace().direct_pack(weight), [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 4, 4):
            torch.set_num_threads(count)
            results.append(run(ALL[name], x, packed, shift, residual))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    last = between_sentinels((1, *x.shape[1:]), dtype).copy_(x[-1:])
    assert torch.equal(run(ALL[name], last, packed, shift, residual[-1:]), results[0][-1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name",
    ["kernel-3-stride-2", "kernel-3-dilation-2", "channels-17", "kernel-2-stride-3", "in-place-odd", "in-place-even"],
)
def test_nan_and_infinity_come_out_where_torch_has_them(name, value, dtype):
    case = ALL[name]
    x, weight, shift, residual, convolve = problem(case, dtype)
    x = between_sentinels(x.shape, dtype).copy_(x)
    packed = library.namespace().direct_pack(weight)
    for y, column in ((0, 0), (x.shape[2] // 2, x.shape[3] - 1), (x.shape[2] - 1, x.shape[3] // 2)):
        bad = between_sentinels(x.shape, dtype).copy_(x)
        bad[-1, -1, y, column] = value
        got, eager = (
            run(case, bad, packed, shift, residual, relu=True),
            torch.relu(convolve(bad, weight, shift) + residual),
        )
        assert torch.equal(got.isnan(), eager.isnan()) and torch.equal(got.isinf(), eager.isinf())


def test_subnormal_values_are_not_flushed_in_float32():
    case = (1, 16, 32, 8, 8, 3, 3, 1, 1, 1)
    x, weight, shift, _, convolve = problem(case, torch.float32)
    x = between_sentinels(x.shape, torch.float32).copy_(x * 1e-39)
    got = run(case, x, library.namespace().direct_pack(weight), torch.zeros_like(shift))
    exact = convolve(x.double(), weight.double(), torch.zeros_like(shift))
    assert (got.double() - exact).norm() < 1e-4 * exact.norm()


def test_relu_keeps_negative_zero():
    case = (1, 2, 3, 3, 3, 3, 3, 1, 1, 1)
    x = between_sentinels((1, 2, 3, 3), torch.float32).fill_(-0.0)
    packed = library.namespace().direct_pack(torch.zeros(3, 2, 3, 3))
    residual = between_sentinels((1, 3, 3, 3), torch.float32).fill_(-0.0)
    torch.testing.assert_close(
        run(case, x, packed, torch.full((3,), -0.0), residual, relu=True), torch.zeros(1, 3, 3, 3)
    )


def test_batch_of_none():
    case = (1, 3, 5, 6, 6, 3, 3, 1, 1, 1)
    packed = library.namespace().direct_pack(torch.randn(5, 3, 3, 3))
    assert run(case, torch.empty(0, 3, 6, 6), packed, torch.zeros(5)).shape == (0, 5, 6, 6)
