"""The compiled CPU kernels as a backend (csrc/cpu), and the convolutions of a live network that they run.

They are Winograd's F(2x2,3x3), and the stem with its pooling. F(2x2,3x3) has 2.25 times fewer multiplications; its
weights are transformed anew in every call. Its error is at most 1.5 times that of torch's most exact direct
convolution, and below that of torch's other convolutions (docs/design/winograd.md). F(4x4,3x3) has up to four times the
error of torch's most exact convolution. Only freeze() uses it, because freeze() checks the network.
"""

import functools

import torch

from . import epilogue as activations
from . import library, passes
from .backend import Backend, Kernels

THEN_A_PASS = "torch's convolution, then one fused pass: "  # noqa: S105 (a pass over memory)


def conv_bn_relu(library, x, weight, epilogue, out, convolution, config=None):
    """Signature as in kernels/cuda.py. Returns False where a value was not finite, because Winograd spreads such a
    value over its tile."""
    mean, var, _, bn_weight, bn_bias, eps = epilogue.norm
    return library.winograd_conv_bn_relu(
        x,
        _with_rows(weight),
        mean,
        var,
        bn_weight,
        bn_bias,
        epilogue.residual,
        out,
        convolution.padding[0],
        eps,
        epilogue.activation,
    )


def conv_bn_relu_pool(library, x, weight, epilogue, out, convolution, config=None):
    """Signature as in kernels/cuda.py. Returns False where a scale is infinite: the kernel folds scales into the
    weights, and an infinite scale of a sum differs from a sum of infinite weights."""
    activations.check(epilogue.activation, (activations.RELU,), "conv_bn_relu_pool: activation")
    scale, shift = _scale_and_shift(epilogue.norm)
    if not torch.isfinite(scale).all():
        return False
    packed = library.stem_pack(weight.contiguous(), scale)
    library.stem_conv_pool(x, packed, shift, out, weight.shape[2], convolution.stride[0], convolution.padding[0])
    return True


def _scale_and_shift(norm):
    """(scale, shift) of batch norm, computed in float64: two float32 vectors of a few dozen channels."""
    scale = (norm.var.double() + norm.eps).rsqrt_()
    if norm.weight is not None:
        scale *= norm.weight
    shift = -norm.mean * scale
    if norm.bias is not None:
        shift += norm.bias
    return scale.float(), shift.float()


def conv(library, x, weight, out, convolution):
    """The convolution alone, for training. Like the two gradients it returns False where a value was not finite."""
    return library.winograd_forward(x, _with_rows(weight), out, convolution.padding[0])


def conv_input_grad(library, grad, weight, out, convolution, config=None):
    return library.winograd_input_gradient(grad, _with_rows(weight), out, convolution.padding[0])


def conv_weight_grad(library, grad, x, out, convolution):
    dense = _with_rows(out)
    finite = library.winograd_weight_gradient(grad, x, dense, convolution.padding[0])
    if dense is not out:
        out.copy_(dense)
    return finite


def _with_rows(weight):
    """A weight [K, C, 3, 3] whose rows of taps lie one after another, as every dense weight's do."""
    return weight if weight.stride(2) == 3 * weight.stride(3) else weight.contiguous()


CONVOLUTIONS = {
    "conv_bn_relu": conv_bn_relu,
    "conv_bn_relu_pool": conv_bn_relu_pool,
    "conv": conv,
    "conv_input_grad": conv_input_grad,
    "conv_weight_grad": conv_weight_grad,
}


@functools.cache
def _launcher(op):
    if op in BLOCKS:
        return getattr(library.namespace(), op)
    if op in CONVOLUTIONS:
        return functools.partial(CONVOLUTIONS[op], library.namespace())
    return None if op in COMPOSED else passes.launcher(library.namespace(), op)


COMPOSED = ("conv_bn_relu_pair", "conv_stats")
BLOCKS = (
    "residual_block",
)  # residual_block(x, tensors, numbers, eps, projection, shortcut): csrc/register/cpu/block.cpp


@functools.lru_cache(maxsize=4096)
def refusal(op, convolution):
    """Why no kernel of the library runs `op`, or None."""
    if (why := _why_not(op, convolution)) is not None:
        return THEN_A_PASS + why
    return None


def _why_not(op, convolution):
    if convolution.dtype != torch.float32:
        return f"the CPU's own convolutions are for float32, not {convolution.dtype}"
    if op not in CONVOLUTIONS and op not in COMPOSED:
        return f"no kernel of the CPU's own for {op}"
    return _why_not_stem(convolution) if op == "conv_bn_relu_pool" else _why_not_winograd(convolution)


def _why_not_stem(convolution):
    _, weight, _, stride, padding, dilation, groups = convolution
    square = weight[2] == weight[3] <= 16 and stride[0] == stride[1] and padding[0] == padding[1] < weight[2]
    # Images have few channels. With more channels oneDNN's convolution is faster.
    if square and weight[1] <= 4 and dilation == (1, 1) and groups == 1:
        return None
    return "the stem's kernel is for square filters over at most 4 channels"


def _why_not_winograd(convolution):
    _, weight, _, stride, padding, dilation, groups = convolution
    if weight[2:] != (3, 3) or stride != (1, 1) or dilation != (1, 1) or groups != 1:
        return "Winograd is for 3x3 convolutions of stride 1"
    return None if padding in ((0, 0), (1, 1)) else "Winograd is for padding 0 or 1"


def _why_slower(op, convolution):
    """Why torch's convolution is faster than Winograd's, or None.

    The weights are transformed anew in every call. That costs the time which a certain number of tiles of 2x2 outputs
    saves, so Winograd needs more tiles than that number. Speed relative to direct convolution and pass, two threads:
    256 channels and 49 tiles 1.12 to 1.39, 512 channels and 16 tiles 0.83 to 1.01, 48 tiles 0.85, 128 tiles 1.2; 32 to
    128 channels and 32 tiles 1.4 to 2. With 16 channels the transforms of the tiles cost what the products save
    (measured: 2-core Intel Xeon, torch 2.13, 2026-11-24). The gradient of a weight transforms no weights, and torch's is
    slow for small maps: 512 channels and 16 tiles 2.3, 256 channels and 49 tiles 2.1 (2-core AMD Zen 4, 2026-12-01).
    """
    x, weight, padding = convolution.x, convolution.weight, convolution.padding
    tiles, enough = x[0], 32 if weight[0] * weight[1] <= 256 * 256 else 64
    for size, p in zip(x[2:], padding, strict=True):
        tiles *= (size + 2 * (2 - p if op == "conv_input_grad" else p) - 1) // 2
    if tiles < enough and op != "conv_weight_grad":
        return f"only {tiles} Winograd tiles share the transformed weights"
    if min(weight[:2]) < 32:
        return f"only {min(weight[:2])} channels share the transformed tiles"
    return None


_DEFAULTS = {
    "conv_bn_relu": "Winograd F(2x2,3x3)",
    "conv_bn_relu_pool": "convolution and pooling in one pass",
    "conv_stats": "Winograd F(2x2,3x3), then one fused pass",
    "conv_input_grad": "Winograd F(2x2,3x3)",
    "conv_weight_grad": "Winograd F(3x3,2x2)",
}


@functools.lru_cache(maxsize=4096)
def _default(op, convolution):
    if convolution is None:
        return True, "default on CPUs"
    why = refusal(op, convolution)
    if why is None and op != "conv_bn_relu_pool":
        slower = _why_slower(op, convolution)
        why = slower and THEN_A_PASS + slower
    return (True, _DEFAULTS.get(op, "default on CPUs")) if why is None else (False, why)


BACKEND = Backend(
    "native",
    "cpu",
    lambda device: library.why_absent(),
    Kernels((*passes.OPS, *CONVOLUTIONS, *COMPOSED, *BLOCKS), _launcher),
    refusal,
    default=_default,
    for_any_values=False,
)
