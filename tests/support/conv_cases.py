"""Convolutions for the CUDA kernels on the emulator, each with eager's answer and float64's."""

import conv_emulated as emulated
import torch
import torch.nn.functional as F
from conv_emulated import LAST, MATHS

from resnet_fused.measure.accuracy import assert_within_budget, exact

EPS = 1e-3
ONE = [1, 1]
# float32 has no kernel with the largest tile: see conv_plan.
TILES_AND_MATHS = [(t, m) for t in ("64x64", "128x64", "128x128") for m in MATHS if (t, m) != ("128x128", "f32")]


class Case:
    """Inputs, eager's answer and float64's for one convolution."""

    def __init__(self, math, shape, k, r, *, stride=1, padding=0, dilation=1, groups=1, residual=True, relu=True,
                 params=torch.float32, affine=True, seed=0):  # fmt: skip
        torch.manual_seed(seed)
        self.dtype, self.tf32 = MATHS[math]
        self.options = stride, padding, dilation, groups
        self.relu = relu
        c = shape[1] // groups
        s = r if isinstance(r, int) else r[1]
        r = r if isinstance(r, int) else r[0]
        self.x = torch.randn(shape).to(self.dtype).to(memory_format=LAST)
        self.weight = (torch.randn(k, c, r, s) / (c * r * s) ** 0.5).to(self.dtype).contiguous(memory_format=LAST)
        self.conv = emulated.sizes(shape, self.weight.shape, *self.options)
        self.norm = [torch.randn(k) * 0.5, torch.rand(k) + 0.1, torch.randn(k), torch.randn(k)]
        self.norm = [t.to(params) for t in self.norm[: 4 if affine else 2]] + [None] * (0 if affine else 2)
        out = torch.empty(shape[0], k, self.conv["p"], self.conv["q"], dtype=self.dtype)
        self.out = out.contiguous(memory_format=LAST).fill_(torch.nan)
        self.residual = torch.randn_like(out).contiguous(memory_format=LAST) if residual else None

    def reference(self, convert):
        stride, padding, dilation, groups = self.options
        y = F.conv2d(convert(self.x), convert(self.weight), None, stride, padding, dilation, groups)
        norm = [t.double() if t is not None and y.dtype == torch.float64 else t for t in self.norm]
        y = F.batch_norm(y, *norm, False, 0, EPS)
        if self.residual is not None:
            y = y + convert(self.residual)
        return torch.relu(y) if self.relu else y

    def rounding(self):
        """What float32 sums of exact products may err by, per output: terms' magnitudes times a few units."""
        stride, padding, dilation, groups = self.options
        mean, var, weight, bias = (None if t is None else t.double()[:, None, None] for t in self.norm)
        scale = (1 if weight is None else weight.abs()) / (var + EPS).sqrt()
        sums = F.conv2d(exact(self.x).abs(), exact(self.weight).abs(), None, stride, padding, dilation, groups)
        size = (sums + mean.abs()) * scale + (0 if bias is None else bias.abs())
        size = size + (0 if self.residual is None else exact(self.residual).abs())
        return 2.0**-20 * size + (2.0**-10 * sums * scale if self.tf32 else 0)

    def run(self, **kwargs):
        before = [None if t is None else t.clone() for t in (self.x, self.weight, self.residual, *self.norm)]
        emulated.convolve("conv_bn_relu", self.x, self.weight, self.norm, self.residual, self.out, self.conv, EPS,
                          relu=self.relu, allow_tf32=self.tf32, **kwargs)  # fmt: skip
        after = (self.x, self.weight, self.residual, *self.norm)
        for a, b in zip(after, before, strict=True):
            assert a is b or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), "an input was written"
        return self.out

    def check(self, factor=2.0, **kwargs):
        out, oracle, eager = self.run(**kwargs), self.reference(exact), self.reference(lambda t: t)
        unit = torch.finfo(self.dtype).eps / 2
        error = (out.double() - oracle).abs()
        allowed = unit * oracle.abs() + (1 + unit) * self.rounding() + torch.finfo(self.dtype).smallest_normal * unit
        worst = (error / allowed).max().item()  # NaN where nothing was written
        assert worst <= 1, f"{worst:.2f} of one rounding of the output and of float32 sums"
        if not self.tf32:  # eager on a CPU has no TF32 to compare with
            assert_within_budget(out, eager, oracle, "conv_bn_relu", factor=factor)
        return out

    def plan(self, **kwargs):
        return emulated.plan(self.dtype, self.conv, self.tf32, **kwargs)


class Conv:
    """A 3x3 convolution of c to k channels on `size`, padded by one, and a projection of the same input."""

    def __init__(self, math, c=64, k=72, size=(6, 7), n=1):
        torch.manual_seed(0)
        dtype, self.tf32 = MATHS[math]
        self.x = torch.randn(n, c, *size).to(dtype).contiguous(memory_format=LAST)
        self.weight = (torch.randn(k, c, 3, 3) / (9 * c) ** 0.5).to(dtype).contiguous(memory_format=LAST)
        self.projection = (torch.randn(k, c, 1, 1) / c**0.5).to(dtype).contiguous(memory_format=LAST)
        self.norm = torch.randn(k) * 0.5, torch.rand(k) + 0.1, torch.randn(k), torch.randn(k)
        self.empty = lambda: torch.full((n, k, *size), torch.nan, dtype=dtype).contiguous(memory_format=LAST)

    def choices(self, ops, most_splits=32):
        text = ops.conv_choices(self.x, self.weight, ONE, ONE, ONE, 1, most_splits, self.tf32)
        return [(tile, int(splits)) for tile, splits in map(str.split, text.splitlines())]

    def run(self, ops, tile="auto", splits=0, x=None):
        x, out = self.x if x is None else x, self.empty()
        ops.conv_bn_relu(
            x, self.weight, *self.norm, None, out, ONE, ONE, ONE, 1, EPS, True, self.tf32, tile=tile, splits=splits
        )
        return out

    def pair(self, ops, tile="auto", splits=0):
        out, out2 = self.empty(), self.empty()
        ops.conv_bn_relu_pair(
            self.x, self.weight, *self.norm, out, ONE, ONE, ONE, EPS,
            self.projection, *self.norm, out2, ONE, [0, 0], EPS, self.tf32, tile=tile, splits=splits,
        )  # fmt: skip
        return out, out2

    def stats(self, ops, tile="auto"):
        out, (mean, invstd) = self.empty(), torch.full((2, self.weight.shape[0]), torch.nan)
        ops.conv_stats(
            self.x, self.weight, out, mean, invstd, None, None, None, ONE, ONE, ONE, 1, 0.1, EPS, self.tf32, tile=tile
        )
        return out, mean, invstd

    def check(self, out, weight, padding, relu):
        def expected(convert):
            y = F.conv2d(convert(self.x), convert(weight), padding=padding)
            y = F.batch_norm(y, *map(convert, self.norm), False, 0, EPS)
            return torch.relu(y) if relu else y

        oracle = expected(exact)
        if self.tf32:
            torch.testing.assert_close(out.double(), oracle, rtol=2e-3, atol=2e-2)
        else:
            assert_within_budget(out, expected(lambda t: t), oracle, "out")
