"""The strip convolution (csrc/cuda/conv_strip.cuh) on the emulator against float64, and its plan."""

import ctypes

import conv_emulated as emulated
import pytest
import torch
from emulator import build
from test_conv_emulated import EPS, Case

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


class Strip(Case):
    def __init__(self, math, shape, **options):
        super().__init__(math, shape, 64, 3, padding=1, **options)

    def run(self, lines=0, **schedule):
        """`lines`: of a segment, at most; 0: as planned."""
        emulated.convolve("conv_strip", self.x, self.weight, self.norm, self.residual, self.out, self.conv, EPS,
                          relu=self.relu, splits=lines, **schedule)  # fmt: skip
        return self.out


# Batches, widths and heights around 8 images, 14 columns and the seven slots of the ring.
SHAPES = {
    "one-pixel": (1, 64, 1, 1),
    "one-line": (9, 64, 1, 15),
    "one-column": (2, 64, 12, 1),
    "exact": (8, 64, 5, 14),
    "ragged": (11, 64, 4, 17),
    "a-pixel-short": (7, 64, 3, 13),
}


@pytest.mark.parametrize("math", ["f16", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(name, math):
    Strip(math, SHAPES[name]).check(seed=1)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_epilogues(relu, residual):
    Strip("bf16", (3, 64, 3, 5), relu=relu, residual=residual).check(seed=2)


@pytest.mark.parametrize("lines", [1, 2, 7, 23])
def test_segments(lines):
    """23: the ring comes round three times."""
    Strip("f16", (2, 64, 23, 3)).check(lines=lines, seed=lines)


@pytest.mark.parametrize(("params", "affine"), [(torch.float16, True), (torch.bfloat16, True), (torch.float32, False)])
def test_parameter_types(params, affine):
    Strip("bf16" if params == torch.bfloat16 else "f16", (2, 64, 3, 4), params=params, affine=affine).check()


@pytest.mark.parametrize("residual", [True, False])
def test_same_bits_whatever_the_schedule(residual):
    results = []
    for seed, policy in [(0, 0), (1, 0), (2, 0), (0, 1), (5, 1), (7, 1)]:
        case = Strip("f16", (3, 64, 19, 3), residual=residual)
        results.append(case.run(lines=19, seed=seed, policy=policy).clone())
    assert all(torch.equal(r, results[0]) for r in results)


def test_nan_and_infinity_stay_where_they_belong():
    """Not in the neighbouring image, which lies beside it in shared memory, nor across the edge of a strip."""
    case = Strip("f16", (3, 64, 5, 16))
    case.x[1, 2, 2, 13] = torch.nan
    case.x[0, 1, 4, 0] = torch.inf
    case.residual[2, 5, 0, 15] = torch.nan
    out, eager = case.run(), case.reference(lambda t: t)
    assert out.isnan().any() and not out.isnan().all()
    assert torch.equal(out.isnan(), eager.isnan()) and torch.equal(out.isinf(), eager.isinf())


class Planned(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("strips_w", "segments", "rows", "blocks", "shared")]


def plan(shape, dtype=torch.bfloat16, k=64, r=3, lines=0, **options):
    """(the plan, of each block its first image, column and line and its number of lines)"""
    conv = emulated.sizes(shape, (k, shape[1] // options.get("groups", 1), r, r), **{"padding": 1, **options})
    call = emulated.Call(dtype=emulated.DTYPES[dtype], splits=lines, **conv)
    planned = Planned()
    emulated.run("conv_strip_plan", call, ctypes.byref(planned), None)
    places = (ctypes.c_int64 * (4 * planned.blocks))()
    emulated.run("conv_strip_plan", call, ctypes.byref(planned), places)
    return planned, torch.tensor(list(places)).view(-1, 4).tolist()


@pytest.mark.parametrize("lines", [0, 1, 3])
@pytest.mark.parametrize(
    "shape", [(1, 64, 1, 1), (9, 64, 7, 15), (32, 64, 56, 56), (17, 64, 13, 29), (256, 64, 56, 56)], ids=str
)
def test_every_output_once(shape, lines):
    written = torch.zeros(shape[0], *shape[2:], dtype=torch.int32)
    for image, column, line, lines_here in plan(shape, lines=lines)[1]:
        assert lines_here > 0 and column < shape[3] and image < shape[0]
        written[image : image + 8, line : line + lines_here, column : column + 14] += 1
    assert (written == 1).all()


@pytest.mark.parametrize(
    ("batch", "segments", "rows", "blocks"), [(256, 1, 56, 128), (512, 1, 56, 256), (32, 8, 7, 128), (1, 28, 2, 112)]
)
def test_plan_of_resnets_first_layer(batch, segments, rows, blocks):
    """One wave on 132 multiprocessors at batch 256 and at batch 32."""
    planned = plan((batch, 64, 56, 56))[0]
    assert (planned.segments, planned.rows, planned.blocks) == (segments, rows, blocks)
    assert planned.strips_w == 4 and planned.shared <= 227 * 1024


@pytest.mark.parametrize(
    ("shape", "options", "why"),
    [
        pytest.param((1, 64, 8, 8), {"dtype": torch.float32}, "float16 and bfloat16, not float32", id="float32"),
        pytest.param((1, 64, 8, 8), {"groups": 2}, "one group", id="groups"),
        pytest.param((1, 128, 8, 8), {}, "64 channels in and out", id="channels-in"),
        pytest.param((1, 64, 8, 8), {"k": 128}, "64 channels in and out", id="channels-out"),
        pytest.param((1, 64, 8, 8), {"r": 5, "padding": 2}, "3x3", id="kernel"),
        pytest.param((1, 64, 8, 8), {"stride": 2}, "stride 1", id="stride"),
        pytest.param((1, 64, 8, 8), {"dilation": 2, "padding": 2}, "dilation 1", id="dilation"),
        pytest.param((1, 64, 8, 8), {"padding": 0}, "padding 1", id="padding"),
        pytest.param((1, 64, 2**15, 2**15), {}, "at most 2\\^28", id="size"),
    ],
)
def test_what_it_does_not_take(shape, options, why):
    with pytest.raises(RuntimeError, match=why):
        plan(shape, **options)
