"""conv_bn_relu_pool of csrc/cuda on the emulator against float64."""

import conv_emulated as emulated
import pytest
import torch
import torch.nn.functional as F
from conv_emulated import LAST, MATHS

from resnet_fused.measure.accuracy import assert_within_budget, exact

EPS = 1e-3
SMALL, LARGE = 1, 0


class Case:
    def __init__(self, math, shape, k, r=7, *, stride=2, padding=3, seed=0):
        torch.manual_seed(seed)
        self.dtype, self.tf32 = MATHS[math]
        self.options = stride, padding
        c = shape[1]
        r, s = (r, r) if isinstance(r, int) else r
        self.x = torch.randn(shape).to(self.dtype).contiguous(memory_format=LAST)
        self.weight = (torch.randn(k, c, r, s) / (c * r * s) ** 0.5).to(self.dtype).contiguous(memory_format=LAST)
        self.conv = emulated.sizes(shape, self.weight.shape, stride, padding)
        self.norm = [torch.randn(k) * 0.5, torch.rand(k) + 0.1, torch.randn(k), torch.randn(k)]

    def reference(self, convert, pool=lambda y: F.max_pool2d(y, 3, 2, 1)):
        stride, padding = self.options
        y = F.conv2d(convert(self.x), convert(self.weight), None, stride, padding)
        norm = [t.double() if y.dtype == torch.float64 else t for t in self.norm]
        return pool(torch.relu(F.batch_norm(y, *norm, False, 0, EPS)))

    def run(self, tile=-1, blocks=0, **kwargs):
        p, q = (self.conv["p"] - 1) // 2 + 1, (self.conv["q"] - 1) // 2 + 1
        out = torch.empty(self.x.shape[0], self.weight.shape[0], p, q, dtype=self.dtype)
        out = out.contiguous(memory_format=LAST).fill_(torch.nan)
        emulated.convolve("conv_bn_relu_pool", self.x, self.weight, self.norm, None, out, self.conv, EPS,
                          allow_tf32=self.tf32, tile=tile, splits=blocks, **kwargs)  # fmt: skip
        return out

    def check(self, **kwargs):
        out, oracle, eager = self.run(**kwargs), self.reference(exact), self.reference(lambda t: t)
        mean, var, weight, bias = (t.double()[:, None, None] for t in self.norm)
        scale = weight.abs() / (var + EPS).sqrt()
        sums = F.conv2d(exact(self.x).abs(), exact(self.weight).abs(), None, *self.options)
        rounding = 2.0**-20 * ((sums + mean.abs()) * scale + bias.abs()) + (2.0**-10 * sums * scale if self.tf32 else 0)
        unit = torch.finfo(self.dtype).eps / 2
        # The maximum errs at most by the largest error of a window.
        allowed = (
            unit * oracle.abs() + (1 + unit) * F.max_pool2d(rounding, 3, 2, 1) + torch.finfo(self.dtype).tiny * unit
        )
        worst = ((out.double() - oracle).abs() / allowed).max().item()  # NaN where nothing was written
        assert worst <= 1, f"{worst:.2f} of one rounding of the output and of float32 sums"
        if not self.tf32:
            assert_within_budget(out, eager, oracle, "conv_bn_relu_pool")


# The tiles are 3 x 4 and 7 x 8 pooled pixels: sizes that end inside a tile, and a single pixel.
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("size", [(32, 32), (37, 45), (4, 5), (1, 1)])
def test_stem(math, size):
    Case(math, (2, 3, *size), 64).check(seed=1)


@pytest.mark.parametrize("math", ["f16", "bf16", "tf32"])
def test_large_tile(math):
    Case(math, (1, 3, 41, 37), 72).check(tile=LARGE, seed=2)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_that_walk_over_tiles(math, seed):
    Case(math, (2, 3, 33, 29), 10, seed=seed).check(tile=SMALL, blocks=2, seed=seed, policy=seed % 2)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("options", [
    {"shape": (1, 5, 13, 14), "k": 24, "r": 3, "stride": 1, "padding": 1},
    {"shape": (1, 16, 13, 14), "k": 16, "r": (3, 5), "stride": 2, "padding": 1},
    {"shape": (1, 1, 20, 21), "k": 9, "r": 5, "stride": 3, "padding": 2},
    {"shape": (1, 9, 13, 11), "k": 8, "r": 1, "stride": 1, "padding": 0},
], ids=str)  # fmt: skip
def test_other_convolutions(math, options):
    Case(math, **options).check()


@pytest.mark.parametrize("math", MATHS)
def test_nan_and_infinity_spread_as_in_torch(math):
    case = Case(math, (1, 3, 40, 40), 8)
    case.x[0, 1, 20, 22] = torch.nan  # not in the window of map column 9, whose padded filter row reaches it
    case.x[0, 0, 3, 39] = torch.inf
    out, eager = case.run(), case.reference(lambda t: t)
    assert 0 < out.isnan().sum() < out.numel()
    assert torch.equal(out.isnan(), eager.isnan()) and torch.equal(out.isinf(), eager.isinf())


def test_padding_of_the_pool_never_wins():
    case = Case("f32", (1, 3, 8, 8), 8)
    case.norm[3].fill_(-100)  # every value is cut to zero
    assert torch.equal(case.run(), torch.zeros(1, 8, 2, 2))


def test_refuses_what_does_not_fit():
    with pytest.raises(RuntimeError, match=r"conv_bn_relu_pool: takes one group.*got 512 channels, 3x3 filters"):
        Case("f32", (1, 512, 5, 5), 8, 3).run()
