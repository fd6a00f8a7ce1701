"""The strip convolution (csrc/cuda/hopper/strip/strip.cuh) on the emulator against float64, and its plan."""

import conv_emulated as emulated
import pytest
import strip_emulated as strip
import torch
import torch.nn.functional as F
from conv_cases import EPS, Case
from emulator import build

from resnet_fused.measure.accuracy import assert_within_budget

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


class Strip(Case):
    def __init__(self, math, shape, **options):
        super().__init__(math, shape, 64, 3, padding=1, **options)

    def run(self, **how):
        strip.convolve(self.x, self.weight, self.norm, self.residual, self.out, self.conv, EPS, relu=self.relu, **how)
        return self.out


def sizes(shape, k=64, r=3, **options):
    return emulated.sizes(shape, (k, shape[1] // options.get("groups", 1), r, r), **{"padding": 1, **options})


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


@pytest.mark.parametrize("math", ["f16", "bf16"])
@pytest.mark.parametrize("added", [True, False])
def test_gradient_of_the_input(math, added):
    """With a gradient that it is added to, as at the end of a block's backward."""
    dtype, _ = emulated.MATHS[math]
    torch.manual_seed(5)
    grad, other, x = (torch.randn(9, 64, 4, 15).to(dtype).contiguous(memory_format=emulated.LAST) for _ in range(3))
    weight = (torch.randn(64, 64, 3, 3) / 24).to(dtype)

    def reference(convert):
        y = F.conv2d(convert(x).requires_grad_(), convert(weight), padding=1)
        (into,) = torch.autograd.grad(y, y.grad_fn.next_functions[0][0].variable, convert(grad))
        return into + convert(other) if added else into

    out = torch.full_like(x, torch.nan)
    turned = weight.permute(1, 2, 3, 0).contiguous()  # [c, r, s, k]
    strip.convolve(grad, turned, [None] * 4, other if added else None, out, sizes(x.shape), gradient=True, relu=False)
    eager, oracle = reference(lambda t: t.detach()), reference(lambda t: t.detach().double())
    assert_within_budget(out, eager, oracle, "gradient of x")


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


@pytest.mark.parametrize("lines", [0, 1, 3])
@pytest.mark.parametrize(
    "shape", [(1, 64, 1, 1), (9, 64, 7, 15), (32, 64, 56, 56), (17, 64, 13, 29), (256, 64, 56, 56)], ids=str
)
def test_every_output_once(shape, lines):
    written = torch.zeros(shape[0], *shape[2:], dtype=torch.int32)
    for image, column, line, lines_here in strip.plan(sizes(shape), lines).places:
        assert lines_here > 0 and column < shape[3] and image < shape[0]
        written[image : image + 8, line : line + lines_here, column : column + 14] += 1
    assert (written == 1).all()


@pytest.mark.parametrize(
    ("batch", "segments", "lines", "blocks"), [(256, 1, 56, 128), (512, 1, 56, 256), (32, 8, 7, 128), (1, 28, 2, 112)]
)
def test_plan_of_resnets_first_layer(batch, segments, lines, blocks):
    """One wave on 132 multiprocessors at batch 256 and at batch 32."""
    assert strip.plan(sizes((batch, 64, 56, 56)))[:4] == (4, segments, lines, blocks)
    assert strip.library().strip_shared() <= 227 * 1024


@pytest.mark.parametrize(
    ("shape", "options", "why"),
    [
        pytest.param((1, 64, 8, 8), {"dtype": torch.float32}, "float16 and bfloat16, not float32", id="float32"),
        pytest.param((1, 64, 8, 8), {"capability": (10, 0)}, "capability 9.0, the device has 10.0", id="device"),
        pytest.param((1, 128, 8, 8), {"groups": 2, "k": 128}, "groups 1, not 2", id="groups"),
        pytest.param((1, 128, 8, 8), {}, "input and output channels 64, not 128", id="channels-in"),
        pytest.param((1, 64, 8, 8), {"k": 32}, "input and output channels 64, not 32", id="channels-out"),
        pytest.param((1, 64, 8, 8), {"r": 5, "padding": 2}, "a filter of size 3, not 5", id="filter"),
        pytest.param((1, 64, 8, 8), {"stride": 2}, "stride 1, not 2", id="stride"),
        pytest.param((1, 64, 8, 8), {"dilation": 2}, "dilation 1, not 2", id="dilation"),
        pytest.param((1, 64, 8, 8), {"padding": 0}, "padding 1, not 0", id="padding"),
        pytest.param((2**12, 64, 2**12, 2**12), {}, "32 bits, too few for 4096 images of 4096 x 4096", id="size"),
        pytest.param((1, 64, 8, 8), {}, "", id="none"),
    ],
)
def test_what_it_does_not_take(shape, options, why):
    options = {"dtype": torch.bfloat16, **options}
    asked = {name: options.pop(name) for name in ("dtype", "capability") if name in options}
    found = strip.refusal(conv=sizes(shape, **options), **asked)
    assert why in found and bool(why) == bool(found)
