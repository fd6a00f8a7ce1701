"""The check of an engine before the caller gets it: it must compute what the model computes, as a whole and layer by
layer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..kernels import layout
from ..measure.accuracy import absurd, budget_used, channel_dim_of, exact, off_by
from ..measure.oracle import by_modules, in_float64
from ..ops.bn_relu import reference
from .function import tensors_in
from .network import ConvBn, InDtype, walk

CHECKED = 4  # images whose logits are compared with float64
FEW = 1 << 22  # values of x that are compared in float64; images are independent, so a few of them suffice
ANOTHER_NETWORK = 10.0  # times the error budget, which no rounding reaches


class Errors(NamedTuple):
    """Errors of an engine's logits: the share of their error budget that they use, whether their error has a larger
    norm than eager's, and, where eager is `absurd`, a sentence that says so."""

    share: float
    worse: bool
    absurd: str | None = None


def tensors_of(result):
    """The tensors with a fraction in what a network returns, in order."""
    return [t for t in tensors_in(result) if t.is_floating_point()]


def rounded(model, x, dtype):
    """The result of eager in `dtype` where its operators are right: float32 arithmetic, with every weight and result
    rounded."""

    def round_result(module, args, out):
        return out.to(dtype).float() if torch.is_tensor(out) else out

    model = by_modules(model).eval().to(dtype).float()
    for module in model.modules():
        module.register_forward_hook(round_result)
    return [t.to(dtype) for t in tensors_of(model(x.to(dtype).float()))]


def _oracle(model, x):
    """The results of `model` in float64. Raises TypeError where a copy of the model in float64 does not run: a forward that was
    replaced on an instance still belongs to the original, and a tensor that is neither parameter nor buffer keeps its dtype."""
    try:
        return tensors_of(in_float64(by_modules(model).eval())(exact(x)))
    except Exception as e:  # whatever a forward raises
        first = (str(e).splitlines() or [""])[0]
        raise TypeError(
            f"freeze: a copy of the model in float64, which an engine is compared with, raises {type(e).__name__} ({first}); "
            "use the live model"
        ) from e


@torch.no_grad()
def eager_and_oracle(model, x, dtype):
    """(results of eager in `dtype`, results in float64, None or a sentence that says why the first are not eager's
    own)."""
    x = x.to(dtype)
    oracle = _oracle(model, x)
    eager = tensors_of(by_modules(model).eval().to(dtype)(x))
    if not absurd(eager, oracle) or absurd(right := rounded(model, x, dtype), oracle):
        return eager, oracle, None
    return (
        right,
        oracle,
        (
            f"torch's {str(dtype)[6:]} convolutions are wrong here: eager's logits are {off_by(eager, oracle):.2g} times "
            "their norm away from float64; the error budget is that of float32 convolutions with every result rounded"
        ),
    )


def errors(model, result, x, expected=None):
    """The Errors of an engine's `result` for the images `x`. expected: what `eager_and_oracle` returns for them, where a
    caller has it already: float64 takes seconds in a large network."""
    ours = tensors_of(result)
    if not ours:
        raise TypeError(
            f"freeze: {type(model).__name__} returns a {type(result).__name__}, in which no tensor is found to compare; "
            "use the live model"
        )
    eager, oracle, why = expected or eager_and_oracle(model, x, ours[0].dtype)
    if [t.shape for t in ours] != [t.shape for t in eager]:
        shapes = ([tuple(t.shape) for t in found] for found in (ours, eager))
        raise ValueError("freeze: the engine returns tensors of shapes {}, the model {}".format(*shapes))
    share, worse = 0.0, False
    for t, of_eager, wide in zip(ours, eager, oracle, strict=True):
        share = max(share, budget_used(t, of_eager, wide, channel_dim=None))
        worse |= not (t.double() - wide).norm() <= (of_eager.double() - wide).norm()
    return Errors(share, worse, why)


def check_network(model, share):
    """Raises ValueError where `share` of the error budget is larger than rounding can explain."""
    if not share <= ANOTHER_NETWORK:
        raise ValueError(
            f"freeze: the logits are {share:.3g} times the error budget away from the model's: the forward of "
            f"{type(model).__name__} or of a block is not what a trace of it shows; use the live model"
        )


def refuse(dtype, share, worst):
    """Raises ValueError with the name of the layer that uses the largest share of its error budget."""
    raise ValueError(
        f"freeze: the engine uses {share:.2f} of its error budget in {dtype}; the worst layer is {worst}: "
        "use the live model, or a wider dtype"
    )


def _by_torch(step, x, residual):
    """(eager's result in the dtype of `x`, the result in float64)."""

    def convolution(x, dtype):
        conv = step.conv
        weight = conv.weight.detach().to(x.dtype).to(dtype)
        bias = None if conv.bias is None else conv.bias.detach().to(x.dtype).to(dtype)
        return F.conv2d(x.to(dtype), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def what_follows(z, residual):
        bn = step.bn
        if bn is None:
            return step.follow(z, residual)
        parameters = [None if t is None else t.detach().to(z.dtype) for t in (bn.weight, bn.bias)]
        statistics = [t.to(z.dtype) for t in (bn.running_mean, bn.running_var)]
        z = reference(z, *parameters, *statistics, None, training=False, momentum=0.0, eps=bn.eps, relu=False)
        return step.follow(z, residual)

    z, wide = convolution(x, x.dtype), convolution(exact(x), torch.float64)
    if absurd([z], [wide]):
        z = convolution(x, torch.float32).to(x.dtype)
    return what_follows(z, residual), what_follows(wide, exact(residual))


@torch.no_grad()
def layer_share(step, layer, x, residual, out):
    """The share of the error budget that `layer(x, residual, out)` uses, computed for the first images."""
    ours = layer(x, residual, out)
    images = max(1, min(x.shape[0], FEW * x.shape[0] // x.numel()))
    eager, oracle = _by_torch(step, x[:images], None if residual is None else residual[:images])
    return budget_used(ours[:images], eager, oracle, channel_dim=channel_dim_of(eager))


class Worst(NamedTuple):
    """The layer that uses the largest share of its error budget."""

    share: float
    name: str
    kernel: str

    def __str__(self):
        return f"{self.name} ({self.kernel}) with {self.share:.2f}"


@torch.no_grad()
def worst_layer(steps, layer_of, x):
    """The Worst of the convolutions in `steps`. Each runs on the values that eager computes for it from the images `x`.
    `layer_of(step)`: its layer, a function of (x, residual, out)."""
    found, dtype = [], x.dtype

    def call(step, *values):
        if not isinstance(step, ConvBn):
            return InDtype(step, dtype)(*values)
        x, residual = (layout.in_format(value, layout.CHANNELS_LAST) for value in (*values, None)[:2])
        out = torch.empty(step.out_shape(x.shape), dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
        found.append(Worst(layer_share(step, layer_of(step), x, residual, out), step.name, step.choice.name))
        return _by_torch(step, x, residual)[0]

    walk(steps, x, call)
    return max(found)
