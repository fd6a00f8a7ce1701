"""The three convolutions of a training step on a CPU: which kernel runs them, and that nobody can tell."""

import pytest
import torch
import torch.nn.functional as F
from training_cases import block, check, data, frozen

from resnet_fused import dispatch
from resnet_fused.kernels import library
from resnet_fused.kernels.shapes import Convolution, convolution_of
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.ops.convolution import plain
from resnet_fused.ops.convolution.gradients import conv_gradients
from resnet_fused.ops.training import Block, Unit, residual_blocks

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
LAST = torch.channels_last
WHERE = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups
OPS = ["conv_stats", "conv_input_grad", "conv_weight_grad"]


def tensors(x_shape=(2, 32, 10, 9), k=48, memory_format=LAST, padding=1):
    torch.manual_seed(0)
    x = torch.randn(x_shape).relu().contiguous(memory_format=memory_format)
    weight = torch.randn(k, x_shape[1], 3, 3) / 17
    return x, weight, torch.randn_like(F.conv2d(x, weight, padding=padding))


def chosen(x, weight, grad, where=WHERE):
    """The backends of the forward, the gradient of the input, and that of the weight."""
    forward = convolution_of(x, weight, *where)
    backward = Convolution(grad.shape, (weight.shape[1], *(weight.shape[i] for i in (0, 2, 3))), grad.dtype, *where)
    return [
        dispatch.choose_conv_stats(x, weight, forward).backend,
        dispatch.choose_conv_input_grad(grad, weight, backward).backend,
        dispatch.choose_conv_weight_grad(grad, x, forward).backend,
    ]


OURS, TORCHS = ["native"] * 3, ["torch"] * 3


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        pytest.param({}, OURS, id="many-tiles"),
        pytest.param({"x_shape": (1, 32, 10, 10)}, ["torch", "torch", "native"], id="25-tiles"),
        pytest.param({"x_shape": (8, 16, 20, 20)}, TORCHS, id="16-channels"),
        pytest.param({"memory_format": torch.contiguous_format}, TORCHS, id="NCHW"),
    ],
)
def test_the_default(arguments, found):
    assert chosen(*tensors(**arguments)) == found


def test_other_convolutions_are_torchs():
    x, weight, grad = tensors()
    assert chosen(x.bfloat16(), weight.bfloat16(), grad.bfloat16()) == TORCHS
    for where in (((2, 2), *WHERE[1:]), (*WHERE[:2], (2, 2), 1), (*WHERE[:3], 2), (WHERE[0], (2, 2), *WHERE[2:])):
        assert chosen(x, weight, grad, where) == TORCHS
    with dispatch.backend("torch"):
        assert chosen(x, weight, grad) == TORCHS
    few = tensors(x_shape=(1, 3, 6, 6))
    with dispatch.backend("native"):
        assert chosen(*few) == OURS


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("weight_format", [LAST, torch.contiguous_format], ids=["KRSC", "KCRS"])
def test_values_and_strides(weight_format, padding):
    x, weight, grad = tensors(padding=padding)
    weight = weight.contiguous(memory_format=weight_format)
    where = (WHERE[0], (padding, padding), *WHERE[2:])
    z = plain.convolve(x, weight, *where)
    both = conv_gradients(grad, x, weight, *where, True, True)
    assert z.stride() == grad.stride() and both[0].stride() == x.stride() and both[1].stride() == weight.stride()
    alone = (
        conv_gradients(grad, x, weight, *where, True, False)[0],
        conv_gradients(grad, x, weight, *where, False, True)[1],
    )
    eager, exact = (
        (F.conv2d(x, weight, padding=padding), *_torchs(grad, x, weight, where))
        for x, weight, grad in ((x, weight, grad), (x.double(), weight.double(), grad.double()))
    )
    for ours, again, *others in zip((z, *both), (z, *alone), eager, exact, strict=True):
        assert torch.equal(ours, again)
        assert_within_budget(ours, *others, "a convolution of training")


def _torchs(grad, x, weight, where):
    stride, padding, dilation, groups = where
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, True, False]
    )[:2]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "weight", "grad"])
def test_values_that_are_not_finite_are_where_torch_has_them(which, bad):
    values = tensors()
    values[which][1, 7, 1, 2] = bad
    x, weight, grad = values
    assert chosen(*values) == OURS
    with dispatch.backend("torch"):
        expected = plain.convolve(x, weight, *WHERE), *conv_gradients(grad, x, weight, *WHERE, True, True)
    got = plain.convolve(x, weight, *WHERE), *conv_gradients(grad, x, weight, *WHERE, True, True)
    spoilt = [not t.isfinite().all() for t in expected]
    assert sum(spoilt) == 2, "each tensor is an operand of two of the three"
    for ours, torchs, same in zip(got, expected, spoilt, strict=True):
        if same:
            torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours.isfinite().all()


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize(("kind", "stride"), [("identity", 1), ("projection", 2)])
def test_a_block(kind, stride, mode):
    model = block(kind, channels=32, stride=stride).to(memory_format=LAST)
    model = frozen(model) if mode == "frozen" else model
    x, grad = data(model, (3, 32, 14, 13))
    with dispatch.record() as rows:
        check(model, x, grad)
    found = {op: [choice.backend for name, _, choice in rows if name == op] for op in OPS}
    convolutions = 2 if kind == "identity" else 1  # a projection block begins with stride 2
    assert found["conv_input_grad"].count("native") >= convolutions
    assert found["conv_weight_grad"].count("native") >= convolutions
    assert ("native" in found["conv_stats"]) == (mode == "batch")


def test_the_same_bits_with_less_memory_and_with_every_number_of_threads():
    torch.manual_seed(1)

    def unit(c, k):
        parameters = torch.randn(k, c, 3, 3) / 17, torch.rand(k) + 0.5, torch.randn(k)
        return Unit(*(p.requires_grad_() for p in parameters), None, None, [1, 1], [1, 1], [1, 1], 1, 1e-5)

    first, second, projection = unit(32, 64), unit(64, 64), unit(32, 64)  # the projection is 3x3: it runs again
    x, grad = torch.randn(2, 32, 12, 12).contiguous(memory_format=LAST), torch.randn(2, 64, 12, 12)
    parameters = [p for one in (first, second, projection) for p in one[:3]]
    results, threads = [], torch.get_num_threads()
    try:
        for recompute, count in ((False, 1), (False, 2), (True, 3), (True, 2)):
            torch.set_num_threads(count)
            y = residual_blocks(x, [Block([first, second], projection)], lambda statistics: None, recompute)
            results.append([y, *torch.autograd.grad(y, parameters, grad)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
