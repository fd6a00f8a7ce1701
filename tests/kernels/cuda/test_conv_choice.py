"""Tiles and slices of the CUDA convolutions by name: every one computes the same, runs as asked, or is refused."""

import conv_emulated as emulated
import pytest
import torch
from conv_cases import EPS, ONE, Conv
from conv_emulated import LAST, MATHS

from resnet_fused.measure.accuracy import exact


@pytest.mark.parametrize("math", MATHS)
def test_every_choice_against_float64(ops, math):
    case = Conv(math)
    choices = case.choices(ops)
    assert {tile for tile, _ in choices} == {"64x64", "128x64", *(["128x128"] if math != "f32" else [])}
    assert {1, 2, 3} <= {splits for _, splits in choices} and len(set(choices)) == len(choices)
    for tile, splits in choices:
        case.check(case.run(ops, tile, splits), case.weight, 1, True)


@pytest.mark.parametrize("math", MATHS)
def test_every_choice_of_a_pair(ops, math):
    case = Conv(math)
    for tile, splits in [("apart", 0), *case.choices(ops)[:4], *((t, 1) for t, s in case.choices(ops) if s == 1)]:
        first, second = case.pair(ops, tile, splits)
        case.check(first, case.weight, 1, True)
        case.check(second, case.projection, 0, False)


@pytest.mark.parametrize("math", MATHS)
def test_every_choice_with_statistics(ops, math):
    case = Conv(math)
    choices = case.choices(ops, most_splits=1)
    assert {splits for _, splits in choices} == {1} and len(choices) == (2 if math == "f32" else 3)
    for tile, _ in choices:
        out, mean, invstd = case.stats(ops, tile)
        stored = exact(out).transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean.double(), stored.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(invstd.double(), (stored.var(1, correction=0) + EPS).rsqrt(), rtol=1e-5, atol=1e-6)


def test_the_tile_that_was_asked_for_runs(ops, last_launch):
    """42 pixels and 72 channels: one tile high, two or one wide; the two larger tiles differ in their threads or width."""
    case, seen = Conv("f16", n=2), {}
    for tile in ("64x64", "128x64", "128x128"):
        m, n = map(int, tile.split("x"))
        case.run(ops, tile, 1)
        seen[tile] = last_launch()
        assert seen[tile][:2] == (-(-84 // m) * -(-72 // n), 1)
        case.stats(ops, tile)
        case.pair(ops, tile, 1)
        assert last_launch()[0] == 2 * seen[tile][0], "both convolutions in one launch"
    assert len(set(seen.values())) == 3
    case.pair(ops, "apart")
    assert last_launch()[0] <= seen["64x64"][0]


@pytest.mark.parametrize("splits", [2, 3, 9])
def test_the_slices_that_were_asked_for_run(ops, last_launch, splits):
    """The bits of a plan that was made directly: the order of a float32 sum is that of its slices."""
    case, out = Conv("f32"), None
    conv = emulated.sizes(case.x.shape, case.weight.shape, 1, 1)
    out = case.empty()
    emulated.convolve("conv_bn_relu", case.x, case.weight, case.norm, None, out, conv, EPS, tile=0, splits=splits)
    assert torch.equal(case.run(ops, "64x64", splits), out)
    assert not torch.equal(case.run(ops, "64x64", 1), out)


def test_views_that_start_askew_run_automatically(ops):
    """A choice was tuned for a shape; a view of that shape must not fail because of where it starts."""
    case = Conv("f16")
    buffer = torch.empty(case.x.numel() + 1, dtype=case.x.dtype)
    askew = buffer[1:].as_strided(case.x.shape, case.x.stride()).copy_(case.x)
    case.check(case.run(ops, "128x128", 2, x=askew), case.weight, 1, True)
    case.x = askew
    case.check(case.pair(ops, "128x64", 2)[1], case.projection, 0, False)
    case.stats(ops, "128x64")


REFUSED = {
    "unknown tile": ("f16", 64, "32x32", 1, "tile must be auto, 64x64, 128x64 or 128x128, but is 32x32"),
    "ragged channels": (
        "f16",
        65,
        "128x64",
        1,
        "tile 128x64 needs channels per group that divide by 8, but they are 65",
    ),
    "ragged float32": ("tf32", 6, "128x64", 1, "tile 128x64 needs channels per group that divide by 4, but they are 6"),
    "no such kernel": ("f32", 64, "128x128", 1, "tile 128x128 has no kernel for IEEE float32; use 64x64 or 128x64"),
    "no slice": ("f16", 64, "64x64", 0, "splits must be 1 to 32, but is 0"),
    "too many slices": ("f16", 64, "64x64", 33, "splits must be 1 to 32, but is 33"),
    "empty slices": ("f16", 64, "64x64", 7, "splits 7 leaves slices without work: there are 9 steps"),
    "splits without a tile": ("f16", 64, "auto", 2, "tile auto chooses its splits, but splits is 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_the_shape_is_refused_in_one_line(ops, name):
    math, c, tile, splits, message = REFUSED[name]
    case = Conv(math, c=c)
    for op, run in (("conv_bn_relu", case.run), ("conv_bn_relu_pair", case.pair)):
        with pytest.raises(RuntimeError) as caught:
            run(ops, tile, splits)
        assert str(caught.value).splitlines()[0] == f"{op}: {message}"


def test_what_has_no_slices_is_refused(ops):
    with pytest.raises(RuntimeError, match=r"^conv_bn_relu_pair: tile apart has no splits, but splits is 2"):
        Conv("f16").pair(ops, "apart", 2)
    with pytest.raises(RuntimeError, match=r"^conv_bn_relu: tile must be auto, .* but is apart"):
        Conv("f16").run(ops, "apart", 1)
    with pytest.raises(RuntimeError, match=r"^conv_stats: tile 128x64 needs channels per group that divide by 8"):
        Conv("f16", c=65).stats(ops, "128x64")
    with pytest.raises(RuntimeError, match=r"^conv_bn_relu_pair: tile 64x64 needs channels that divide by 8"):
        Conv("f16", c=65).pair(ops, "64x64", 1)
    with pytest.raises(RuntimeError, match=r"^conv_choices: most_splits must be 1 to 1024, but is 0"):
        Conv("f16").choices(ops, most_splits=0)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("layer", emulated.RESNET34, ids=str)
def test_the_predicted_choice_is_the_first_to_measure(ops, last_launch, layer, batch):
    """Or tuning could only make it worse."""
    c, k, r, stride, size = layer
    plan = emulated.plan(torch.bfloat16, emulated.sizes((batch, c, size, size), (k, c, r, r), stride, r // 2))
    x = torch.zeros(batch, c, size, size, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    weight = torch.zeros(k, c, r, r, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    lines = ops.conv_choices(x, weight, [stride] * 2, [r // 2] * 2, ONE, 1, 32).splitlines()
    assert lines[0] == f"{emulated.NAME_OF_TILE[plan.tile]} {plan.splits}" and 3 <= len(lines) <= 32
