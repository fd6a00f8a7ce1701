"""An activation that a kernel does not have: the dispatcher has a pass follow, and the kernel itself refuses in one line."""

import pytest
import torch
import torch.nn.functional as F

from resnet_fused import dispatch
from resnet_fused.kernels import cpu, cuda, eager, epilogue, library
from resnet_fused.kernels.epilogue import NONE, RELU, Epilogue, norm_of
from resnet_fused.kernels.shapes import convolution_of

RELU6 = len(epilogue.ACTIVATIONS)  # the next number
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)
needs_library = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


@pytest.fixture
def relu6(monkeypatch):
    """A third activation, which the formula and the pass of `eager` have."""
    monkeypatch.setattr(epilogue, "ACTIVATIONS", (*epilogue.ACTIVATIONS, "relu6"))
    monkeypatch.setattr("resnet_fused.dispatch.choice.ACTIVATIONS", epilogue.ACTIVATIONS)
    monkeypatch.setattr(eager, "activate", lambda y, a: F.relu6(y) if a == RELU6 else epilogue.activate(y, a))


def tensors():
    x = torch.randn(2, 32, 12, 12).to(memory_format=torch.channels_last)
    return x, torch.randn(32, 32, 3, 3) / 8, torch.randn(32), torch.rand(32) + 0.5


def call(x, weight, mean, var, activation):
    return torch.ops.resnet_fused.conv_bn_relu(
        x, weight, mean, var, None, None, None, *map(list, GEOMETRY[:3]), 1, 1e-5, activation
    )


def test_a_pass_follows_a_convolution_without_the_activation(relu6, monkeypatch):
    x, weight, mean, var = tensors()
    monkeypatch.setitem(dispatch.BACKENDS, "native", dispatch.BACKENDS["native"]._replace(why_not=lambda device: None))
    convolution = convolution_of(x, weight, *GEOMETRY)
    asked = {
        a: dispatch.pick("conv_bn_relu", x, weight, convolution=convolution, activation=a)[0] for a in (RELU, RELU6)
    }
    assert asked[RELU].backend == "native"
    assert asked[RELU6] == dispatch.Choice("torch", "native has no relu6: torch's convolution, then one fused pass")
    with dispatch.backend("eager"), torch.no_grad():
        out = call(x, weight, mean, var, RELU6)
    assert torch.allclose(out, F.relu6(F.batch_norm(F.conv2d(x, weight, padding=1), mean, var)), atol=1e-5)
    assert out.max() == 6


def test_an_activation_without_a_backward_is_refused_where_a_gradient_is_wanted(relu6):
    x, weight, mean, var = tensors()
    message = r"^activation of a gradient must be none or relu, not relu6$"
    with dispatch.backend("eager"), pytest.raises(ValueError, match=message):
        call(x.requires_grad_(), weight, mean, var, RELU6)
    vectors = torch.empty(32), torch.empty(32)
    with pytest.raises(ValueError, match=message):
        eager.backward_reduce(x, x, x, None, *vectors, RELU6)


@pytest.mark.parametrize("activation", [-1, RELU6])
def test_the_formula_refuses_what_it_does_not_know(activation):
    with pytest.raises(ValueError, match=f"^activation must be {' or '.join(epilogue.ACTIVATIONS)}, not {activation}$"):
        epilogue.activate(torch.zeros(1), activation)


@needs_library
@pytest.mark.parametrize("op", ["bn_relu", "conv_bn_relu", "conv_bn_relu_pool", "bn_relu_backward_apply"])
def test_every_compiled_kernel_refuses_what_it_does_not_have(op):
    x, weight, mean, var = tensors()
    norm, out = norm_of(mean, var, None, None, 1e-5), torch.empty_like(x)
    launch, convolution = dispatch.BACKENDS["native"].kernels[op], convolution_of(x, weight, *GEOMETRY)
    arguments = {
        "bn_relu": (x, Epilogue(norm, None, RELU6), out),
        "conv_bn_relu": (x, weight, Epilogue(norm, None, RELU6), out, convolution),
        "conv_bn_relu_pool": (x, weight, Epilogue(norm, None, RELU6), out, convolution),
        "bn_relu_backward_apply": (x, None, x, norm, None, None, out, None, RELU6),
    }
    with pytest.raises(
        (RuntimeError, ValueError), match=rf"activation (is|must be) .*\b{RELU6}|must be relu, not {RELU6}"
    ):
        launch(*arguments[op])


@pytest.mark.parametrize("module", [cuda, cpu], ids=["cuda", "cpu"])
def test_the_pool_takes_relu_alone(module):
    x, weight, mean, var = tensors()
    epilogue = Epilogue(norm_of(mean, var, None, None, 1e-5), None, NONE)
    before = () if module is cpu else (False,)  # whether TF32 is allowed
    with pytest.raises(ValueError, match=r"^conv_bn_relu_pool: activation must be relu, not none$"):
        module.conv_bn_relu_pool(None, *before, x, weight, epilogue, None, None)
