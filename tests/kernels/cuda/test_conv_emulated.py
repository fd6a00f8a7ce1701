"""conv_bn_relu of csrc/cuda on the emulator against float64."""

import conv_emulated as emulated
import pytest
import torch
import torch.nn.functional as F
from conv_emulated import LAST, MATHS

from resnet_fused.measure.accuracy import assert_within_budget, exact

EPS = 1e-3


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


# Odd sizes, so that m ends inside a tile and images inside a row of tiles; at least STAGES + 2 k-steps where the
# pipeline is the subject: 3x3 x 64 16-bit channels are 9 steps.
SHAPES = {
    "3x3": {"shape": (2, 64, 9, 11), "k": 64, "r": 3, "padding": 1},
    "3x3 unpadded": {"shape": (2, 64, 9, 11), "k": 72, "r": 3},
    "3x3 stride 2": {"shape": (3, 64, 9, 12), "k": 72, "r": 3, "stride": 2, "padding": 1},
    "1x1 stride 2": {"shape": (2, 448, 13, 9), "k": 64, "r": 1, "stride": 2, "residual": False, "relu": False},
    "dilation 2": {"shape": (1, 48, 12, 9), "k": 40, "r": 3, "padding": 2, "dilation": 2},
    "groups 2": {"shape": (2, 80, 9, 7), "k": 48, "r": 3, "padding": 1, "groups": 2},
    "c 8": {"shape": (1, 8, 13, 9), "k": 16, "r": (7, 9), "padding": 3},
    "rectangle": {"shape": (1, 72, 10, 9), "k": 136, "r": (1, 5), "padding": 2, "residual": False},
}
MASKED = {
    "stem": {"shape": (2, 3, 25, 29), "k": 16, "r": 7, "stride": 2, "padding": 3, "residual": False},
    "c 65": {"shape": (1, 65, 9, 7), "k": 72, "r": 3, "padding": 1},
    "k 10": {"shape": (1, 36, 9, 8), "k": 10, "r": 3, "padding": 1},
    "groups 3": {"shape": (1, 15, 9, 8), "k": 21, "r": 3, "stride": 2, "padding": 1, "groups": 3},
    "depthwise": {"shape": (1, 6, 9, 8), "k": 6, "r": 3, "padding": 1, "groups": 6},
    "one of each": {"shape": (1, 1, 1, 1), "k": 1, "r": 1},
}


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("name", SHAPES)
def test_vector_path(name, math):
    case = Case(math, **SHAPES[name])
    assert case.plan(splits=1).vector and case.plan(splits=1, tile="64x64").steps >= 6
    case.check(splits=1, seed=1)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("name", MASKED)
def test_masked_path(name, math):
    case = Case(math, **MASKED[name])
    assert not case.plan().vector or case.dtype == torch.float32
    case.check(seed=2)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("tile", ["64x64", "128x64", "128x128"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_tile(tile, math, seed):
    if tile == "128x128" and math == "f32":
        pytest.skip("no such kernel: see conv_plan")
    case = Case(math, (2, 64, 9, 9), 136, 3, padding=1, seed=seed)
    case.check(tile=emulated.TILES[tile], splits=1, seed=seed, policy=seed)


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("splits", [2, 5, 9])
def test_split_k(math, splits):
    case = Case(math, (1, 64, 7, 9), 72, 3, padding=1)
    assert case.plan(splits=splits).splits > 1
    case.check(splits=splits, seed=splits)
    plan = case.plan(splits=7)
    assert (plan.splits - 1) * plan.steps_per_split < plan.steps, "an empty slice"
    Case("f16", (1, 20, 7, 9), 22, 5, padding=2, groups=2).check(splits=splits)  # masked, ragged in every dimension


@pytest.mark.parametrize("splits", [1, 4])
def test_same_bits_whatever_the_schedule(splits):
    results = []
    for seed, policy in [(0, 0), (1, 0), (0, 1), (7, 1)]:
        case = Case("f16", (1, 64, 9, 9), 64, 3, padding=1)
        results.append(case.run(splits=splits, seed=seed, policy=policy).clone())
    assert all(torch.equal(r, results[0]) for r in results)


def test_a_batch_in_several_launches():
    for splits in (1, 3):
        Case("bf16", (5, 64, 7, 7), 72, 3, padding=1).check(images=2, splits=splits)


@pytest.mark.parametrize("params", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_parameter_types(params, affine):
    dtype = {torch.float32: "bf16", torch.float16: "f16", torch.bfloat16: "bf16"}[params]
    Case(dtype, (1, 64, 6, 5), 24, 3, padding=1, params=params, affine=affine).check()


@pytest.mark.parametrize("math", ["f16", "f32"])
def test_misaligned_tensors(math):
    case = Case(math, (1, 64, 6, 7), 64, 3, padding=1)

    def shifted(t):  # the same values one element further into a buffer
        buffer = torch.empty(t.numel() + 1, dtype=t.dtype)
        view = buffer[1:].as_strided(t.shape, t.stride())
        return view.copy_(t)

    case.x, case.out, case.residual = shifted(case.x), shifted(case.out), shifted(case.residual)
    assert not case.plan(aligned=False).vector
    case.check()


@pytest.mark.parametrize("math", ["f16", "tf32", "f32"])
@pytest.mark.parametrize("c", [64, 5])
def test_nan_and_infinity_stay_where_they_belong(math, c):
    case = Case(math, (1, c, 9, 9), 16, 3, padding=1, residual=False)
    case.x[0, 2, 4, 4] = torch.nan
    case.x[0, 1, 8, 0] = torch.inf
    out, eager = case.run(), case.reference(lambda t: t)
    assert out.isnan().any() and not out.isnan().all()
    assert torch.equal(out.isnan(), eager.isnan()) and torch.equal(out.isinf(), eager.isinf())


def test_a_large_mean_does_not_cancel():
    case = Case("f32", (1, 64, 9, 9), 16, 3, padding=1, residual=False, relu=False)
    case.x += 100
    case.norm[0] = F.conv2d(case.x, case.weight, None, *case.options).mean((0, 2, 3))
    # One running sum over 576 terms near 100. Some of oneDNN's kernels add sums of parts: on Zen 5 the error is 2.6 times
    # eager's there; the bound of float32 sums, which cancelling would break a thousandfold, holds on every CPU.
    case.check(splits=1, factor=4.0)


@pytest.mark.parametrize("batch", [1, 8, 32, 256])
@pytest.mark.parametrize("layer", emulated.RESNET34, ids=str)
def test_plans_of_resnet34(layer, batch):
    c, k, r, stride, size = layer
    conv = emulated.sizes((batch, c, size, size), (k, c, r, r), stride, r // 2)
    plan = emulated.plan(torch.bfloat16, conv)
    m, n = map(int, emulated.NAME_OF_TILE[plan.tile].split("x"))
    assert plan.vector and plan.images == batch
    assert plan.tiles_m * m >= batch * conv["p"] * conv["q"] > (plan.tiles_m - 1) * m
    assert plan.tiles_n * n >= k > (plan.tiles_n - 1) * n
    assert (plan.splits - 1) * plan.steps_per_split < plan.steps <= plan.splits * plan.steps_per_split
    assert plan.scratch == (plan.splits > 1) * plan.splits * plan.tiles_m * m * plan.tiles_n * n * 4
    blocks = plan.tiles_m * plan.tiles_n * plan.splits
    if plan.steps >= 18:  # below, a second kernel costs more than the idle multiprocessors (predicted)
        assert blocks >= 96, f"{blocks} blocks leave a third of 132 multiprocessors without work"


def test_plans_of_huge_and_impossible_tensors():
    conv = emulated.sizes((4096, 64, 1024, 1024), (64, 64, 3, 3), 1, 1)
    plan = emulated.plan(torch.float16, conv)
    assert 0 < plan.images < 4096 and plan.images * 1024 * 1024 < 2**31
    assert plan.images * 1025 * 1025 * 64 // 8 < 2**31
    conv = emulated.sizes((1, 5, 2**15, 2**14), (8, 5, 1, 1))
    with pytest.raises(RuntimeError, match="conv_bn_relu: an image below 2\\^30 elements"):
        emulated.plan(torch.float16, conv)
