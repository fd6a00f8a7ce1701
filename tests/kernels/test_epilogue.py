"""Convolution and Epilogue: the sizes of results beside torch's own, and activations that a kernel does not have."""

import pytest
import torch
import torch.nn.functional as F

from resnet_fused import dispatch
from resnet_fused.kernels import cpu, cuda, eager
from resnet_fused.kernels.epilogue import NONE, RELU, Epilogue, activate, check, norm_of, saves_output
from resnet_fused.kernels.shapes import convolution_of, pooled_shape

SILU = 2  # as the next activation would be numbered


@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("padding", [0, 1, (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (1, 5), (7, 7)])
def test_sizes_are_torchs(stride, padding, dilation, size):
    x, weight = torch.empty(2, 4, 17, 14, device="meta"), torch.empty(6, 2, *size, device="meta")
    pair = [list(v) if isinstance(v, tuple) else [v, v] for v in (stride, padding, dilation)]
    convolution = convolution_of(x, weight, *pair, 2)
    assert hash(convolution) == hash(convolution_of(x, weight, *map(tuple, pair), 2))
    expected = F.conv2d(x, weight, None, stride, padding, dilation, 2)
    assert convolution.out_shape == expected.shape
    if min(expected.shape) > 0:
        assert pooled_shape(expected.shape) == F.max_pool2d(expected, 3, 2, 1).shape


def test_what_an_activation_is():
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(activate(x, NONE), x) and torch.equal(activate(x, RELU), torch.relu(x))
    assert saves_output(RELU) and not saves_output(NONE)
    with pytest.raises(ValueError, match="activation must be none or relu, not 2"):
        check(SILU)


def norm():
    return norm_of(torch.zeros(4), torch.ones(4), None, None, 1e-5)


def test_the_formula_refuses_one_that_it_does_not_have():
    x = torch.randn(1, 4, 3, 3)
    with pytest.raises(ValueError, match="activation must be none or relu, not 2"):
        eager.apply(x, Epilogue(norm(), None, SILU), torch.empty_like(x))


def test_tritons_kernels_refuse_one_that_they_do_not_have():
    triton = dispatch.BACKENDS["triton"]
    if (why := triton.why_not(torch.device("cpu"))) is not None:
        pytest.skip(why)
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 4, 1, 1)
    convolution = convolution_of(x, weight, (1, 1), (0, 0), (1, 1), 1)
    epilogue = Epilogue(norm(), None, SILU)
    for run in (
        lambda: triton.kernels["bn_relu"](x, epilogue, x),
        lambda: triton.kernels["conv_bn_relu"](x, weight, epilogue, x, convolution),
        lambda: triton.kernels["bn_relu_backward_reduce"](x, None, x, None, x[0, :, 0, 0], None, SILU),
    ):
        with pytest.raises(ValueError, match="activation must be none or relu, not 2"):
            run()


@pytest.mark.parametrize("launcher", [cuda.CONVOLUTIONS["conv_bn_relu_pool"], cpu.CONVOLUTIONS["conv_bn_relu_pool"]])
def test_pooling_is_for_relu_alone(launcher):
    """The kernels compare values as if none were negative."""
    library = () if launcher is cpu.CONVOLUTIONS["conv_bn_relu_pool"] else (False,)
    with pytest.raises(ValueError, match="conv_bn_relu_pool: activation must be relu, not none"):
        launcher(None, *library, None, None, Epilogue(norm(), None, NONE), None, None)
