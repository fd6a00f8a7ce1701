"""conv_stats of csrc/cuda on the emulator: the convolution, and the statistics of what it stored."""

import ctypes

import conv_emulated as emulated
import pytest
import torch
import torch.nn.functional as F
from conv_cases import TILES_AND_MATHS
from conv_emulated import LAST, MATHS

from resnet_fused.measure.accuracy import exact

EPS = 1e-3


class Case:
    def __init__(
        self, math, shape, k, r, *, stride=1, padding=0, dilation=1, groups=1, buffers=torch.float32, offset=0.0
    ):
        torch.manual_seed(0)
        self.dtype, self.tf32 = MATHS[math]
        self.options = stride, padding, dilation, groups
        c = shape[1] // groups
        self.x = (torch.randn(shape) + offset).to(self.dtype).contiguous(memory_format=LAST)
        self.weight = (torch.randn(k, c, r, r) / (c * r * r) ** 0.5).to(self.dtype).contiguous(memory_format=LAST)
        self.conv = emulated.sizes(shape, self.weight.shape, *self.options)
        self.running = [torch.randn(k).to(buffers), torch.rand(k).to(buffers) + 0.5]

    def run(self, batches=None, momentum=0.1, running=True, **kwargs):
        k = self.weight.shape[0]
        out = torch.empty(self.x.shape[0], k, self.conv["p"], self.conv["q"], dtype=self.dtype)
        out = out.contiguous(memory_format=LAST).fill_(torch.nan)
        mean, invstd = torch.full((2, k), torch.nan)
        tracked = None if batches is None else torch.tensor(batches)
        more = (
            ctypes.c_void_p(mean.data_ptr()),
            ctypes.c_void_p(invstd.data_ptr()),
            ctypes.c_void_p(None if tracked is None else tracked.data_ptr()),
            ctypes.byref(ctypes.c_double(momentum)),
        )
        norm = [*(self.running if running else (None, None)), None, None]
        emulated.convolve("conv_stats", self.x, self.weight, norm, None, out, self.conv, EPS, allow_tf32=self.tf32,
                          more=more, **kwargs)  # fmt: skip
        return out, mean, invstd

    def check(self, batches=None, momentum=0.1, running=True, **kwargs):
        before = [t.clone() for t in self.running]
        out, mean, invstd = self.run(batches, momentum, running, **kwargs)
        oracle = F.conv2d(exact(self.x), exact(self.weight), None, *self.options)
        sums = F.conv2d(exact(self.x).abs(), exact(self.weight).abs(), None, *self.options)
        unit = torch.finfo(self.dtype).eps / 2
        allowed = unit * oracle.abs() + (2.0**-20 + (2.0**-10 if self.tf32 else 0)) * sums
        assert ((out.double() - oracle).abs() / allowed).max() <= 1

        stored = exact(out).transpose(0, 1).flatten(1)
        m, var = stored.mean(1), stored.var(1, unbiased=False)
        assert ((mean - m).abs() <= 2.0**-21 * (m.abs() + var.sqrt())).all()
        assert ((invstd * (var + EPS).sqrt() - 1).abs() <= 2.0**-20).all()
        if running:
            factor = momentum if batches is None else 1 / batches
            want = [(1 - factor) * b.double() + factor * v for b, v in zip(before, (m, stored.var(1)), strict=True)]
            for got, oracle in zip(self.running, want, strict=True):
                torch.testing.assert_close(got, oracle.to(got.dtype), rtol=torch.finfo(got.dtype).eps * 4, atol=1e-6)


@pytest.mark.parametrize(("tile", "math"), TILES_AND_MATHS)
def test_every_tile(tile, math):
    Case(math, (3, 64, 9, 9), 136, 3, padding=1).check(tile=emulated.TILES[tile], seed=1)


@pytest.mark.parametrize("math", ["f16", "f32"])
@pytest.mark.parametrize("options", [
    {"shape": (2, 3, 21, 23), "k": 16, "r": 7, "stride": 2, "padding": 3},
    {"shape": (1, 65, 8, 8), "k": 10, "r": 3, "padding": 1},
    {"shape": (2, 32, 9, 7), "k": 48, "r": 3, "padding": 1, "groups": 2},
    {"shape": (1, 8, 13, 5), "k": 8, "r": 1},  # one value in the last half tile
], ids=str)  # fmt: skip
def test_shapes(math, options):
    Case(math, **options).check(seed=2)


def test_running_statistics():
    Case("bf16", (2, 64, 7, 7), 24, 3, padding=1, buffers=torch.bfloat16).check(momentum=0.3)
    Case("f16", (2, 64, 7, 7), 24, 3, padding=1).check(batches=7)
    Case("f16", (2, 64, 7, 7), 24, 3, padding=1).check(running=False)


def test_a_large_mean_does_not_cancel():
    case = Case("f32", (2, 16, 12, 12), 16, 3, offset=300.0)
    case.x[:, :, ::2] += 0.25
    case.check()


def test_a_batch_in_several_launches():
    Case("f16", (5, 16, 9, 9), 24, 3, padding=1).check(images=2)


def test_same_bits_whatever_the_schedule():
    runs = [
        Case("f16", (2, 64, 9, 9), 64, 3, padding=1).run(seed=s, policy=p) for s, p in [(0, 0), (3, 0), (0, 1), (5, 1)]
    ]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
