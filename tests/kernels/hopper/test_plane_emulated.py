"""csrc/cuda/hopper/plane/plane.cuh on the emulator against float64: TMA, mbarriers and wgmma at their weakest, under random
schedules, with the record of races."""

import conv_emulated
import plane_emulated as emulated
import pytest
import torch
from conv_cases import EPS, Case
from conv_emulated import LAST
from emulator import build

from resnet_fused.measure.accuracy import assert_within_budget, exact

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


class PlaneCase(Case):
    def run(self, **kwargs):
        before = [None if t is None else t.clone() for t in (self.x, self.weight, self.residual, *self.norm)]
        emulated.convolve(
            self.x, self.weight, self.norm, self.residual, self.out, self.conv, EPS, relu=self.relu, **kwargs
        )
        after = (self.x, self.weight, self.residual, *self.norm)
        for a, b in zip(after, before, strict=True):
            assert a is b or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), "an input was written"
        return self.out


# More taps x channels than the rings have slots; images that end inside of a block of 64, and one more block of one.
SHAPES = {
    "3x3": {"shape": (3, 128, 5, 6), "k": 128, "r": 3, "padding": 1},
    "3x3 stride 2": {"shape": (3, 64, 6, 9), "k": 192, "r": 3, "stride": 2, "padding": 1},
    "3x3 unpadded": {"shape": (2, 64, 4, 7), "k": 128, "r": 3, "residual": False},
    "1x1": {"shape": (65, 128, 2, 3), "k": 128, "r": 1},
    "1x1 stride 2": {"shape": (5, 128, 5, 7), "k": 192, "r": 1, "stride": 2, "residual": False, "relu": False},
    "dilation 2": {"shape": (2, 64, 5, 7), "k": 128, "r": 3, "padding": 2, "dilation": 2},
    "1x5": {"shape": (2, 64, 3, 9), "k": 128, "r": (1, 5), "padding": 2, "relu": False},
    "pixels without taps": {"shape": (2, 64, 2, 3), "k": 128, "r": 1, "padding": 2},
    "7x7 map": {"shape": (1, 64, 7, 7), "k": 128, "r": 3, "padding": 1},
}


@pytest.mark.parametrize("places", [4, 2])
@pytest.mark.parametrize("math", ["f16", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_values(name, math, places):
    PlaneCase(math, **SHAPES[name]).check(places=places, seed=1)


@pytest.mark.parametrize("places", [4, 2])
def test_same_bits_whatever_the_schedule(places):
    results = []
    for seed, policy, multiprocessors in [(0, 0, 3), (1, 1, 1), (2, 0, 2), (3, 1, 5), (4, -1, 132), (5, 1, 1)]:
        case = PlaneCase("f16", (2, 128, 4, 5), 128, 3, padding=1)
        results.append(case.run(places=places, seed=seed, policy=policy, multiprocessors=multiprocessors).clone())
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize(("places", "multiprocessors"), [(4, 2), (2, 7)])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("3x3", (65, 128, 3, 4), id="3x3"),
        pytest.param("3x3 stride 2", (66, 64, 3, 5), id="stride-2"),
        pytest.param("1x1 stride 2", (130, 128, 3, 3), id="three-groups-of-images"),
        pytest.param("pixels without taps", (3, 64, 2, 3), id="one-block-has-no-image"),
    ],
)
def test_pairs_of_blocks(name, shape, places, multiprocessors):
    """Each loads half of the weights for both; the bits of blocks on their own."""
    given = SHAPES[name] | {"shape": shape}
    together = PlaneCase("f16", **given)
    together.check(places=places, cluster=2, seed=places, multiprocessors=multiprocessors)
    assert torch.equal(together.out, PlaneCase("f16", **given).run(places=places))


@pytest.mark.parametrize("cluster", [1, 2])
def test_the_residual_may_be_the_result(cluster):
    """A tile's part of it is in shared memory before any of the tile is written."""
    given = {"shape": (66, 64, 2, 3), "k": 192, "r": 3, "padding": 1}
    case, expected = PlaneCase("f16", **given), PlaneCase("f16", **given).run()
    case.out = case.residual
    emulated.convolve(
        case.x, case.weight, case.norm, case.residual, case.out, case.conv, EPS, relu=case.relu, cluster=cluster, seed=5
    )
    assert torch.equal(case.out, expected)


@pytest.mark.parametrize("seed", range(6))
def test_one_block_walks_over_all_tiles(seed):
    """Rings, parities and norms carry over from tile to tile."""
    case = PlaneCase("bf16", (66, 64, 3, 5), 192, 3, stride=2, padding=1)
    case.check(seed=seed, policy=seed % 2, multiprocessors=1, cluster=1 + seed // 2 % 2)


@pytest.mark.parametrize("params", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_parameter_types(params, affine):
    dtype = "f16" if params == torch.float16 else "bf16"
    PlaneCase(dtype, (1, 64, 3, 4), 128, 3, padding=1, params=params, affine=affine).check()


def test_nan_and_infinity_stay_where_they_belong():
    case = PlaneCase("f16", (3, 64, 6, 7), 128, 3, padding=1, residual=False)
    case.x[0, 2, 4, 4] = torch.nan
    case.x[1, 1, 5, 0] = torch.inf
    out, eager = case.run(), case.reference(lambda t: t)
    assert out.isnan().any() and not out.isnan().all()
    assert torch.equal(out.isnan(), eager.isnan()) and torch.equal(out.isinf(), eager.isinf())


@pytest.mark.parametrize("places", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "k", "r", "stride", "padding"),
    [
        pytest.param((3, 128, 5, 6), 64, 3, 1, 1, id="3x3"),
        pytest.param((3, 128, 6, 7), 128, 3, 2, 1, id="3x3 stride 2"),
        pytest.param((2, 192, 5, 5), 64, 1, 2, 0, id="1x1 stride 2: three of four pixels have no tap"),
    ],
)
def test_gradient_of_the_input(shape, k, r, stride, padding, dtype, places):
    """One kernel, another list: the weights with their two channels exchanged, each tap where the convolution has it."""
    torch.manual_seed(0)
    weight = (torch.randn(k, shape[1], r, r) / (k * r * r) ** 0.5).to(dtype)
    conv = conv_emulated.sizes(shape, weight.shape, stride, padding)
    grad = torch.randn(shape[0], k, conv["p"], conv["q"]).to(dtype).contiguous(memory_format=LAST)
    turned = weight.transpose(0, 1).contiguous(memory_format=LAST)
    out = torch.empty(shape, dtype=dtype).contiguous(memory_format=LAST).fill_(torch.nan)
    how = {"gradient": True, "places": places, "relu": False}
    emulated.convolve(grad, turned, [None] * 4, None, out, conv, **how, seed=3)
    pair = torch.full_like(out, torch.nan)
    emulated.convolve(grad, turned, [None] * 4, None, pair, conv, **how, seed=4, cluster=2)
    assert torch.equal(pair, out)
    eager, oracle = (
        torch.nn.grad.conv2d_input(shape, convert(weight), convert(grad), stride, padding)
        for convert in (lambda t: t, exact)
    )
    assert_within_budget(out, eager, oracle, "the gradient of the input")
