"""The e4m3 convolution in Triton against float64 arithmetic on the same e4m3 values: one rounding, and float32's sums.

Without a GPU it runs in Triton's interpreter, whose conversions are replaced by bit arithmetic (kernels/_common.py). The matrix
unit's short sums are seen on a GPU only; that they are promoted is seen in the machine code (tests/house/test_aot.py).
"""

import pytest
import torch

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.frozen.fp8 import layers as _registered  # noqa: F401 (the ops)
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.kernels.e4m3 import E4M3
from resnet_fused.kernels.shapes import out_shape
from resnet_fused.kernels.triton import schedule

pytest.importorskip("triton")
op, quantise = torch.ops.resnet_fused.conv_fp8, torch.ops.resnet_fused.quantise_fp8
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _a_device_for_it(device):
    if (why := fp8.why_not(torch.device(device))) is not None:
        pytest.skip(why)


@pytest.fixture
def slack(device):
    return fp8.SLACK if device == "cuda" else 2.0**-20


def e4m3(shape, device, spread=60.0):
    values = fp8.narrow(torch.randn(shape) * spread, E4M3).to(device)
    return values.contiguous(memory_format=torch.channels_last)


def pair(value):
    return [value] * 2 if isinstance(value, int) else list(value)


def made(x_shape, weight_shape, device, added=None, stride=1, padding=0, dilation=1, channels_scale=2.0):
    """Arguments of the op up to `residual_scale`, and where the convolution lies. Results of a few dozen to a few hundred."""
    x, weight, k = e4m3(x_shape, device), e4m3(weight_shape, device), weight_shape[0]
    terms = weight[0].numel()
    scale = (torch.rand(k) + 0.5).to(device) * (channels_scale * 50 / (3600 * terms**0.5))
    shift = torch.randn(k).to(device) * 30
    where = pair(stride), pair(padding), pair(dilation)
    shape = out_shape(x.shape, weight.shape, *where)
    residual = None if added is None else e4m3(shape, device).to(added)
    return (x, weight, scale, shift, residual, 0.37), where


def run(arguments, where, relu, stored, tile=()):
    x, weight = arguments[:2]
    out = torch.empty(out_shape(x.shape, weight.shape, *where), dtype=stored, device=x.device)
    out = out.contiguous(memory_format=torch.channels_last)
    out.view(torch.uint8 if stored == E4M3 else torch.int16).fill_(-1 if stored != E4M3 else 255)  # NaN
    op(*arguments, out, *where, relu, tile)
    return out


# x, weight, where, what is added, what is stored, tile
CASES = [
    pytest.param((2, 64, 5, 7), (64, 64, 3, 3), {"padding": 1}, E4M3, E4M3, (), id="3x3"),
    pytest.param((1, 64, 9, 8), (32, 64, 3, 3), {"stride": 2, "padding": 1}, None, E4M3, (), id="stride-2"),
    pytest.param((2, 128, 5, 5), (64, 128, 1, 1), {"stride": 2}, None, E4M3, (), id="projection"),
    pytest.param((1, 16, 6, 5), (16, 16, 3, 3), {"padding": 1}, BF16, E4M3, (), id="16-channels-half-a-step"),
    pytest.param((3, 48, 3, 3), (40, 48, 3, 3), {"padding": 1}, E4M3, E4M3, (), id="ragged-channels"),
    pytest.param((1, 80, 4, 4), (10, 80, 3, 3), {"padding": 1}, E4M3, BF16, (), id="written-in-bfloat16"),
    pytest.param((1, 256, 3, 3), (24, 256, 3, 3), {"padding": 1}, E4M3, E4M3, (), id="split-depth"),
    pytest.param((1, 32, 7, 5), (16, 32, 2, 3), {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}, None, E4M3,
                 (), id="uneven"),
    pytest.param((1, 64, 4, 4), (128, 64, 3, 3), {"padding": 1}, None, E4M3, (64, 64, 8, 4, 2), id="tile-by-name"),
]  # fmt: skip


@pytest.mark.parametrize(("x", "weight", "where", "added", "stored", "tile"), CASES)
def test_numbers(device, slack, x, weight, where, added, stored, tile):
    arguments, where = made(x, weight, device, added, **where)
    for relu in (True, False):
        ours = run(arguments, where, relu, stored, tile)
        oracle = fp8.reference(*arguments, *where, relu)
        used = fp8.share(ours, oracle, fp8.magnitude(*arguments, *where), slack)
        assert used <= 1, f"{used:.3f} of a rounding and the sums' own error"
        assert 10 < oracle.std() < 300, "a test of zeros, or of saturation"


def test_split_reductions_are_among_the_cases():
    assert (
        schedule.conv(9, 24, 256, 9, 1, 1, "ieee").splits > 1
        and schedule.conv(30, 16, 16, 9, 1, 1, "ieee").block_d == 32
    )


def test_saturation_and_nan(device):
    """Beyond 448 is 448, of either sign, and never NaN; a NaN goes to what reads it and nowhere else."""
    arguments, where = made((1, 16, 6, 6), (16, 16, 3, 3), device, padding=1, channels_scale=40.0)
    x, scale = arguments[0], arguments[2]
    oracle = fp8.reference(*arguments, *where, False)
    ours = run(arguments, where, False, E4M3).float()
    assert (oracle > 448).sum() > 20 and (oracle < -448).sum() > 20
    assert (ours[oracle > 464] == 448).all() and (ours[oracle < -464] == -448).all() and ours.isfinite().all()
    x[0, 3, 2, 2] = float("nan")
    scale[5] = float("nan")
    expected = torch.zeros_like(ours, dtype=torch.bool)
    expected[:, :, 1:4, 1:4] = expected[:, 5] = True
    for relu in (True, False):
        assert torch.equal(run(arguments, where, relu, E4M3).isnan(), expected)


def test_every_value_of_e4m3_and_the_middles_between(device):
    """To the nearest, at ties to the even one, from bfloat16 and float32."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    values = codes[codes.isfinite()].unique()
    middles = (values[1:] + values[:-1]) / 2
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e9, 465.0, 2.0**-11, 1e-30])
    near = torch.cat([middles * (1 + 2**-20), middles * (1 - 2**-20)])
    for x in (torch.cat([codes, middles, near, special]), torch.cat([codes, middles, special]).to(BF16)):
        x = x.to(device)
        out = torch.full(x.shape, 255, dtype=torch.uint8, device=device).view(E4M3)
        quantise(x, 0.5, out)
        expected = fp8.narrow(x.float() * 0.5, E4M3)
        assert torch.equal(out.isnan(), x.isnan()) and torch.equal(
            out.float().nan_to_num(), expected.float().nan_to_num()
        )
        nonzero = ~x.isnan()
        assert torch.equal(out.float().signbit()[nonzero], x.float().signbit()[nonzero])


def test_the_formula_in_torch_is_that_of_the_kernel(device):
    arguments, where = made((2, 32, 6, 6), (32, 32, 3, 3), device, E4M3, padding=1)
    ours = run(arguments, where, True, E4M3)
    with resnet_fused.backend("eager"), dispatch.record() as rows:
        eager = run(arguments, where, True, E4M3)
    assert [choice.backend for _, _, choice in rows] == ["eager"]
    off = ours.float() != eager.float()
    assert off.sum() <= (2 if device == "cpu" else 70), "of 2,304 what lies near the middle of two values, nothing else"


def test_empty_batches(device):
    arguments, where = made((0, 16, 6, 6), (16, 16, 3, 3), device, E4M3, padding=1)
    assert run(arguments, where, True, E4M3).shape == (0, 16, 6, 6)
    quantise(arguments[0].to(BF16), 1.0, arguments[0])


@pytest.mark.parametrize("added", [None, E4M3, BF16], ids=str)
def test_fakes_and_what_is_written_to(device, added):
    """opcheck's comparison of values does not know e4m3: what the schema says is written, and nothing else, by bytes."""
    arguments, where = made((1, 16, 4, 4), (16, 16, 3, 3), device, added, padding=1)
    out = e4m3((1, 16, 4, 4), device)
    tensors = [t for t in arguments[:5] if t is not None]
    before = [t.clone() for t in tensors]
    torch.library.opcheck(op, (*arguments, out, *where, True, []), test_utils=("test_faketensor",))
    torch.library.opcheck(quantise, (out.to(BF16), 0.5, out), test_utils=("test_faketensor",))
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(tensors, before, strict=True))
    assert [a.name for a in op.default._schema.arguments if a.is_write] == ["out"]
    assert [a.name for a in quantise.default._schema.arguments if a.is_write] == ["out"]


def test_what_does_not_fit_is_refused_in_one_line(device):
    arguments, where = made((1, 16, 4, 4), (16, 16, 3, 3), device, E4M3, padding=1)
    x, weight, scale, shift, residual, factor = arguments
    out = e4m3((1, 16, 4, 4), device)
    for changed, error, message in (
        ((x.to(BF16), weight, scale, shift, residual, factor, out), TypeError, "x and weight should be float8_e4m3fn"),
        ((x[:, :8], weight[:, :8], scale, shift, residual, factor, out), ValueError, "multiples of 16, not 8"),
        ((x, weight, scale[:3], shift, residual, factor, out), ValueError, r"scale should be \[16\] in float32, got \(3,\)"),
        ((x, weight, scale, shift, residual[:, :, 1:], factor, out), ValueError, r"residual should be \(1, 16, 4, 4\)"),
        ((x, weight, scale, shift, residual, factor, out.float()), ValueError, "out should be .* torch.float32"),
        ((x.contiguous(), weight, scale, shift, residual, factor, out), ValueError, "x should be channels_last"),
        ((x[:0, :1], weight, scale, shift, None, factor, out), ValueError, "do not fit"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            op(*changed, *where, True, [])
    with pytest.raises(ValueError, match="quantise_fp8: out should be as x"):
        quantise(x.to(BF16), 1.0, torch.empty((1, 16, 4, 4), dtype=E4M3, device=device))
