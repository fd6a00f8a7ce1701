"""The strip convolution in CUDA as the product runs it: launcher, checks, dispatch; against float64 beside torch's own error.

Without a GPU its kernels run on the emulator; with --device=cuda, on Hopper, they are the library's.
"""

import pytest
import torch
from cases import activation, channels, shifted

from resnet_fused import dispatch, ops
from resnet_fused.kernels.epilogue import Epilogue, Norm
from resnet_fused.kernels.hopper.strip import cuda as cuda_strip
from resnet_fused.kernels.shapes import Convolution, convolution_of
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.conv_bn_relu import reference

BACKEND = "cuda_strip"  # of the fixture `library`
EPS = 1e-5
LAST = torch.channels_last
GEOMETRY = [1, 1], [1, 1], [1, 1], 1  # stride, padding, dilation, groups


def make(device, dtype, shape):
    x, residual = (activation(shape, dtype, device=device) for _ in range(2))
    weight = activation((64, 64, 3, 3), dtype, device=device, mean=0.0, std=1 / 24)
    return x, weight, channels(64, device), residual


def run(library, x, weight, params, residual, relu=True, out=None):
    bn_weight, bn_bias, mean, var = params
    out = torch.full_like(x, torch.nan) if out is None else out
    epilogue = Epilogue(Norm(mean, var, None, bn_weight, bn_bias, EPS), residual, int(relu))
    cuda_strip.conv_bn_relu(library, x, weight, epilogue, out, convolution_of(x, weight, *GEOMETRY))
    return out


def check(ours, x, weight, params, residual, relu=True):
    wide = [exact(t) for t in (x, weight, *params, residual)]
    eager, oracle = (reference(*t, padding=1, relu=relu) for t in ((x, weight, *params, residual), wide))
    assert_within_budget(ours, eager, oracle, "out")


# The last three only on a GPU, where several blocks run at once: one wave, two waves, strips cut across.
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize(
    "shape", [(9, 64, 3, 15), (2, 64, 9, 4), (256, 64, 56, 56), (300, 64, 57, 55), (32, 64, 56, 56)], ids=str
)
def test_against_float64(library, device, dtype, shape, with_residual):
    if device == "cpu" and shape[0] > 9:
        pytest.skip("too large for the emulator")
    x, weight, params, residual = make(device, dtype, shape)
    residual = residual if with_residual else None
    ours = run(library, x, weight, params, residual, with_residual)
    check(ours, x, weight, params, residual, with_residual)
    assert torch.equal(ours, run(library, x, weight, params, residual, with_residual)), "the same bits"


def test_views_that_start_askew(library, device):
    """The copy engine reads from multiples of 16 bytes: such an operand is copied, such a result refused."""
    x, weight, params, residual = make(device, torch.float16, (2, 64, 3, 3))

    ours = run(library, shifted(x), shifted(weight), params, shifted(residual))
    check(ours, x, weight, params, residual)
    with pytest.raises(RuntimeError, match="conv_strip: out does not begin at a multiple of 16 bytes"):
        run(library, x, weight, params, residual, out=shifted(ours))


CASES = [
    pytest.param({}, None, id="taken"),
    pytest.param({"dtype": torch.float32}, "not float32", id="dtype"),
    pytest.param({"x": (2, 128, 5, 5), "groups": 2}, "one group, not 2", id="groups"),
    pytest.param({"x": (2, 32, 5, 5), "weight": (64, 32, 3, 3)}, "channels 64, not 32", id="channels-in"),
    pytest.param({"weight": (128, 64, 3, 3)}, "channels 64, not 128", id="channels-out"),
    pytest.param({"weight": (64, 64, 3, 1)}, "size 3, not 1", id="filter"),
    pytest.param({"stride": [2, 1]}, "stride 1, not 2", id="stride"),
    pytest.param({"padding": [1, 0]}, "padding 1, not 0", id="padding"),
    pytest.param({"dilation": [1, 2]}, "dilation 1, not 2", id="dilation"),
]


@pytest.mark.parametrize(("change", "why"), CASES)
def test_dispatcher_and_library_refuse_the_same(library, device, change, why):
    given = {"x": (2, 64, 5, 5), "weight": (64, 64, 3, 3), "dtype": torch.float16, "stride": [1, 1], "padding": [1, 1],
             "dilation": [1, 1], "groups": 1} | change  # fmt: skip
    dtype, geometry = given["dtype"], [given[name] for name in ("stride", "padding", "dilation", "groups")]
    x, weight = (torch.empty(given[t], dtype=dtype, device=device).to(memory_format=LAST) for t in ("x", "weight"))
    theirs = library.conv_strip_refusal(x, weight, *geometry)
    convolution = Convolution(x.shape, weight.shape, dtype, *geometry)
    ours = cuda_strip.refusal("conv_bn_relu", convolution)
    assert bool(theirs) == (ours is not None) == (why is not None)
    if why is not None:
        assert why in ours and why in theirs.replace("groups 1, not 2", "one group, not 2")
        with pytest.raises(ValueError, match="the strip kernel"):
            cuda_strip.conv_bn_relu(library, x, weight, None, None, convolution)


def test_wrong_tensors_are_refused_in_one_line(library, device):
    x, weight, params, residual = make(device, torch.float16, (2, 64, 3, 3))
    with pytest.raises(RuntimeError, match=r"conv_strip: out has shape \[1, 64, 3, 3\], but the result is"):
        run(library, x, weight, params, residual, out=torch.empty_like(x[:1]))
    with pytest.raises(RuntimeError, match=r"conv_strip: residual has shape \[1, 64, 3, 3\]"):
        run(library, x, weight, params, residual[:1])
    with pytest.raises(RuntimeError, match="conv_strip: weight has another dtype than x"):
        run(library, x, weight.bfloat16(), params, residual)


def test_the_public_op_runs_it(library, device, monkeypatch):
    """By name; the op notes what ran."""
    here = {"device": device, "why_not": lambda device: None, "kernels": cuda_strip.kernels(lambda: library)}
    monkeypatch.setitem(dispatch.BACKENDS, "cuda_strip", cuda_strip.BACKEND._replace(**here))
    x, weight, params, residual = make(device, torch.bfloat16, (3, 64, 4, 4))
    with dispatch.record() as rows, dispatch.backend("cuda_strip"):
        ours = ops.conv_bn_relu(x, weight, *params, residual, padding=1)
    assert [choice.backend for _, _, choice in rows] == ["cuda_strip"]
    check(ours, x, weight, params, residual)


def test_gradient_of_the_input(library, device, dtype):
    grad, weight, *_ = make(device, dtype, (9, 64, 3, 15))
    out = torch.full_like(grad, torch.nan)
    convolution = convolution_of(grad, weight.transpose(0, 1), *GEOMETRY)
    cuda_strip.conv_input_grad(library, grad, weight, out, convolution)
    eager, oracle = (
        torch.nn.grad.conv2d_input(grad.shape, convert(weight), convert(grad), padding=1)
        for convert in (lambda t: t, exact)
    )
    assert_within_budget(out, eager, oracle, "the gradient of the input")
    with pytest.raises(ValueError, match="channels 64, not 32"):
        few = weight[:, :32]
        cuda_strip.conv_input_grad(library, grad, few, out, convolution_of(grad, few.transpose(0, 1), *GEOMETRY))
