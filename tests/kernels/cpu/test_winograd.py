"""The Winograd convolutions of the compiled library, against float64 beside the error of torch's own convolution."""

import functools
import os
import threading

import pytest
import torch
import torch.nn.functional as F

from resnet_fused.kernels import library

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native

VARIANTS = [(2, False), (2, True), (4, False), (4, True)]
IDS = ["F2-points", "F2-taps", "F4-points", "F4-taps"]
# n, c, k, h, w: every remainder of a tile, a line of 16 channels and a panel of 32; the stages of a ResNet; one to many
# tiles and blocks, more panels than tiles and the other way round; several chunks of channels (64 and 128). 14 and 11
# take tiles of 4 and of 3 outputs, here in blocks that begin anywhere in an image.
CASES = [
    *[(1, 3, 17, size, 16 - size) for size in range(1, 16)],
    (2, 16, 64, 1, 1), (3, 1, 1, 4, 4), (1, 17, 3, 15, 15), (2, 65, 100, 5, 13), (3, 100, 65, 6, 6), (1, 144, 33, 3, 9),
    (1, 64, 64, 56, 56), (1, 128, 128, 28, 28), (2, 256, 128, 14, 14), (2, 512, 320, 7, 7),
    (9, 32, 32, 14, 11),
]  # fmt: skip
# Error allowed, RMS and maximum over the whole output, in errors of torch's direct convolution + eps * terms / sqrt(c).
# Measured over all cases, instruction sets and algorithms of torch: F(2x2) 1.0 and 2.2; F(4x4), which sums products
# that are larger than their sum, 3.3 and 8.3.
FACTORS = {2: (2.0, 4.0), 4: (4.0, 12.0)}
EPS = torch.finfo(torch.float32).eps


def channels_last(*shape, offset=1):
    """Random and dense channels_last, starting `offset` floats after an aligned address, between sentinels."""
    n, c, h, w = shape
    room = torch.full((n * c * h * w + offset + 16,), 77.0)
    return room.as_strided(shape, (c * h * w, 1, w * c, c), offset).copy_(torch.randn(shape))


def sentinels_intact(t, offset=1):
    room = torch.empty(0).set_(t.untyped_storage())
    return bool((room[:offset] == 77).all() and (room[offset + t.numel() :] == 77).all())


def problem(n, c, k, h, w):
    torch.manual_seed(n + c + k + h + w)
    return channels_last(n, c, h, w), torch.randn(k, c, 3, 3) / (3 * c**0.5), torch.rand(k) + 0.5, torch.randn(k)


def out_like(x, k, padding):
    n, _, h, w = x.shape
    return channels_last(n, k, h + 2 * padding - 2, w + 2 * padding - 2)


def conv(x, packed, shift, residual=None, *, k, m, padding=1, relu=False, out=None, workspace=None):
    out = out_like(x, k, padding) if out is None else out
    ops.winograd_conv(x, packed, shift, residual, out, m, padding, relu, workspace)
    return out


@functools.cache
def references(case, padding):
    """(exact, the sum of the absolute terms, torch's direct convolution in float32)"""
    x, weight, scale, shift = problem(*case)
    folded = weight.double() * scale.double().view(-1, 1, 1, 1)
    exact = F.conv2d(x.double(), folded, shift.double(), padding=padding)
    terms = F.conv2d(x.double().abs(), folded.abs(), shift.double().abs(), padding=padding)
    return exact, terms, F.conv2d(x, folded.float(), shift, padding=padding)


@pytest.mark.parametrize("m, taps", VARIANTS, ids=IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, m, taps):
    x, weight, scale, shift = problem(*case)
    k = case[2]
    packed = ops.winograd_pack(weight, scale, m, taps)
    for padding in (0, 1) if 2 < min(case[3:]) < 28 else (1,):
        exact, terms, direct = references(case, padding)
        got = conv(x, packed, shift, k=k, m=m, padding=padding)
        for norm, factor in zip((lambda t: t.square().mean().sqrt(), lambda t: t.abs().max()), FACTORS[m], strict=True):
            allowed = factor * (norm(direct.double() - exact) + EPS * norm(terms) / case[1] ** 0.5)
            error = norm(got.double() - exact)
            assert error <= allowed, f"padding {padding}: error {error:.3g}, allowed {allowed:.3g}"

        # All that follows the sum is exact: the same operations in torch give the same bits.
        assert sentinels_intact(got)
        assert torch.equal(conv(x, packed, shift, k=k, m=m, padding=padding, relu=True), torch.relu(got))
        residual = channels_last(*got.shape)
        added = got + residual
        assert torch.equal(conv(x, packed, shift, residual, k=k, m=m, padding=padding), added)
        conv(x, packed, shift, residual, k=k, m=m, padding=padding, relu=True, out=residual)
        assert torch.equal(residual, torch.relu(added)) and sentinels_intact(residual)


@pytest.mark.parametrize("m, taps", VARIANTS, ids=IDS)
@pytest.mark.parametrize(
    "case", [(3, 64, 64, 12, 9), (2, 200, 130, 7, 7), (1, 16, 40, 5, 5), (7, 16, 40, 14, 7)], ids=str
)
def test_same_bits_for_every_thread_count_and_slice(case, m, taps):
    x, weight, scale, shift = problem(*case)
    packed = ops.winograd_pack(weight, scale, m, taps)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4, 4):
            torch.set_num_threads(count)
            workspace = torch.full((ops.winograd_workspace(x, packed, case[2], m, 1) + 1,), float("nan"))[1:]
            results.append(conv(x, packed, shift, k=case[2], m=m, workspace=workspace))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    # An image alone gives the bits that it gives in a batch: no blocking changes the order of a sum.
    last = conv(x[-1:], packed, shift, k=case[2], m=m)
    assert torch.equal(last, results[0][-1:])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["KCRS", "KRSC"])
@pytest.mark.parametrize("case", [(1, 64, 64, 12, 9), (2, 35, 50, 7, 5), (1, 1, 40, 5, 5)], ids=str)
def test_live_weights(case, memory_format):
    """The kernel itself: through the op a refusal would be a direct convolution, and every number still right."""
    x, weight, scale, shift = problem(*case)
    weight = weight.contiguous(memory_format=memory_format)
    mean, var, residual = torch.randn(case[2]), torch.rand(case[2]) + 0.5, out_like(x, case[2], 1)
    out = torch.full_like(residual, torch.nan)
    assert ops.winograd_conv_bn_relu(x, weight, mean, var, scale, shift, residual, out, 1, 0.1, True)
    z = F.conv2d(x.double(), weight.double(), padding=1)
    parameters = [t.double() for t in (mean, var, scale, shift)]
    exact = torch.relu(F.batch_norm(z, *parameters, eps=0.1) + residual.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    for value in (torch.nan, torch.inf):
        bad = x.clone()
        bad[-1, 0, 2, 3] = value
        assert not ops.winograd_conv_bn_relu(bad, weight, mean, var, scale, shift, None, out, 1, 0.1, True)


def test_two_calls_at_once():
    cases = [(2, 64, 64, 20, 20), (1, 256, 96, 7, 7)]
    jobs = []
    for case in cases:
        x, weight, scale, shift = problem(*case)
        packed = ops.winograd_pack(weight, scale, 4, False)
        jobs.append((lambda x=x, p=packed, s=shift, k=case[2]: conv(x, p, s, k=k, m=4)))
    expected, wrong = [job() for job in jobs], []

    def repeat(job, result):
        wrong.extend(i for i in range(50) if not torch.equal(job(), result))

    workers = [threading.Thread(target=repeat, args=pair) for pair in zip(jobs * 2, expected * 2, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("m, taps", VARIANTS, ids=IDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_tiles(m, taps, bad):
    x, weight, scale, shift = problem(2, 20, 40, 11, 14)
    packed = ops.winograd_pack(weight, scale, m, taps)
    clean = conv(x, packed, shift, k=40, m=m)
    y, column = 5, 6
    x[1, 7, y, column] = bad
    got = conv(x, packed, shift, k=40, m=m)
    direct = F.conv2d(x, weight * scale.view(-1, 1, 1, 1), shift, padding=1)
    reached = torch.zeros(11, 14, dtype=torch.bool)
    for top in range(0, 11, m):
        for left in range(0, 14, m):
            if top - 1 <= y < top + m + 1 and left - 1 <= column < left + m + 1:
                reached[top : top + m, left : left + m] = True
    assert not (got.isfinite() & ~direct.isfinite()).any()  # at least where the direct convolution is not finite
    assert torch.equal(got[0], clean[0]) and torch.equal(got[1][:, ~reached], clean[1][:, ~reached])
    if bad != bad:
        assert conv(x, packed, shift, k=40, m=m, relu=True)[1, :, y, column].isnan().all()


@pytest.mark.parametrize("m, taps", VARIANTS, ids=IDS)
def test_subnormal_values_are_not_flushed(m, taps):
    x, weight, _, shift = problem(1, 16, 32, 8, 8)
    x *= 1e-39
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    got = conv(x, ops.winograd_pack(weight, None, m, taps), torch.zeros_like(shift), k=32, m=m)
    assert (got.double() - exact).norm() < 1e-4 * exact.norm()


def test_relu_keeps_nan_and_negative_zero():
    packed = ops.winograd_pack(torch.zeros(4, 1, 3, 3), None, 4, False)
    residual = channels_last(1, 4, 3, 3)
    residual[0, :, 1, 1] = torch.tensor([float("nan"), -0.0, -1.0, float("inf")])
    shift = torch.full((4,), -0.0)
    got = conv(channels_last(1, 1, 3, 3).fill_(-0.0), packed, shift, residual, k=4, m=4, relu=True)[0, :, 1, 1]
    assert got[0].isnan() and got[1:].tolist() == [0.0, 0.0, float("inf")]


def test_batch_of_none():
    packed = ops.winograd_pack(torch.randn(5, 3, 3, 3), None, 4, False)
    for x in (channels_last(0, 3, 6, 6), torch.empty(0, 3, 6, 6)):  # of no values the strides mean nothing
        assert conv(x, packed, torch.zeros(5), k=5, m=4).shape == (0, 5, 6, 6)


def test_memory_does_not_grow():
    x, weight, scale, shift = problem(1, 64, 64, 14, 14)
    packed, out = ops.winograd_pack(weight, scale, 4, False), out_like(x, 64, 1)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(50):
        conv(x, packed, shift, k=64, m=4, out=out)
    before = resident()
    for _ in range(300):
        conv(x, packed, shift, k=64, m=4, out=out)
    assert resident() - before < 4 << 20  # 300 workspaces would be 300 MB


GOOD = dict(zip(("x", "weight", "scale", "shift"), problem(1, 8, 16, 6, 6), strict=True))
BAD = {
    "m must be 2 or 4": lambda p, x, s, out: conv(x, p, s, k=16, m=3, out=out),
    "padding must be 0 or 1": lambda p, x, s, out: conv(x, p, s, k=16, m=4, padding=2, out=out),
    "x must be dense channels_last": lambda p, x, s, out: conv(x.contiguous(), p, s, k=16, m=4, out=out),
    "x must be float32": lambda p, x, s, out: conv(x.double(), p, s, k=16, m=4, out=out),
    "out has the wrong shape": lambda p, x, s, out: conv(x, p, s, k=16, m=4, out=out[:, :, :5].clone()),
    "packed must be contiguous": lambda p, x, s, out: conv(x, p[:-1], s, k=16, m=4, out=out),
    "shift must be contiguous": lambda p, x, s, out: conv(x, p, s[:-1], k=16, m=4, out=out),
    "residual must have the shape of out": lambda p, x, s, out: conv(x, p, s, x, k=16, m=4, out=out),
    "workspace has fewer": lambda p, x, s, out: conv(x, p, s, k=16, m=4, out=out, workspace=torch.empty(9)),
    "out must not be x": lambda p, x, s, out: conv(out, ops.winograd_pack(torch.randn(16, 16, 3, 3), None, 4, False), s,
                                                   k=16, m=4, out=out),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_messages(message):
    packed = ops.winograd_pack(GOOD["weight"], GOOD["scale"], 4, False)
    out = out_like(GOOD["x"], 16, 1).clone(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=message):
        BAD[message](packed, GOOD["x"], GOOD["shift"], out)
