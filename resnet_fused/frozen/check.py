"""The check of an engine before the caller gets it: it must compute what the model computes, as a whole and layer by
layer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..kernels import layout
from ..measure.accuracy import absurd, budget_used, channel_dim_of, exact
from ..measure.oracle import by_modules, in_float64
from ..ops.bn_relu import reference
from .network import ConvBn, dead_values

CHECKED = 4  # images whose logits are compared with float64
FEW = 1 << 22  # values of x that are compared in float64; images are independent, so a few of them suffice
ANOTHER_NETWORK = 10.0  # times the error budget, which no rounding reaches


class Errors(NamedTuple):
    """Errors of an engine's logits: the share of their error budget that they use, whether their error has a larger
    norm than eager's, and, where eager is `absurd`, a sentence that says so."""

    share: float
    worse: bool
    absurd: str | None = None


def rounded(model, x, dtype):
    """The result of eager in `dtype` where its operators are right: float32 arithmetic, with every weight and result
    rounded."""

    def round_result(module, args, out):
        return out.to(dtype).float() if torch.is_tensor(out) else out

    model = by_modules(model).eval().to(dtype).float()
    for module in model.modules():
        module.register_forward_hook(round_result)
    return model(x.to(dtype).float()).to(dtype)


@torch.no_grad()
def eager_and_oracle(model, x, dtype):
    """(logits of eager in `dtype`, logits in float64, None or a sentence that says why the first are not eager's
    own)."""
    x = x.to(dtype)
    oracle = in_float64(by_modules(model).eval())(exact(x))
    eager = by_modules(model).eval().to(dtype)(x)
    if not absurd(eager, oracle) or absurd(right := rounded(model, x, dtype), oracle):
        return eager, oracle, None
    off = ((exact(eager) - oracle).norm() / oracle.norm()).item()
    return (
        right,
        oracle,
        (
            f"torch's {str(dtype)[6:]} convolutions are wrong here: eager's logits are {off:.2g} times their norm away from "
            "float64; the error budget is that of float32 convolutions with every result rounded"
        ),
    )


def errors(model, logits, x):
    """The Errors of an engine's `logits` of the images `x`."""
    eager, oracle, why = eager_and_oracle(model, x, logits.dtype)
    ours, of_eager = ((y.double() - oracle).norm() for y in (logits, eager))
    return Errors(budget_used(logits, eager, oracle, channel_dim=None), not ours <= of_eager, why)


def check_network(model, share):
    """Raises ValueError where `share` of the error budget is larger than rounding can explain."""
    if not share <= ANOTHER_NETWORK:
        raise ValueError(
            f"freeze: the logits are {share:.3g} times the error budget away from the model's: the forward of "
            f"{type(model).__name__} or of a block is not that of a ResNet; use the live model"
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
        return F.conv2d(x.to(dtype), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    def what_follows(z, residual):
        bn = step.bn
        parameters = [None if t is None else t.detach().to(z.dtype) for t in (bn.weight, bn.bias)]
        statistics = [t.to(z.dtype) for t in (bn.running_mean, bn.running_var)]
        out = reference(z, *parameters, *statistics, residual, training=False, momentum=0.0, eps=bn.eps, relu=step.relu)
        return F.max_pool2d(out, 3, 2, 1) if step.pool else out

    z, wide = convolution(x, x.dtype), convolution(exact(x), torch.float64)
    if absurd(z, wide):
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
    values, found = {0: x}, []
    for step, dead in zip(steps[:-1], dead_values(steps), strict=False):  # without the head
        x, residual = (layout.in_format(values.get(i), layout.CHANNELS_LAST) for i in (step.input, step.residual))
        if isinstance(step, ConvBn):
            shape = step.out_shape(x.shape)
            out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.CHANNELS_LAST)
            share = layer_share(step, layer_of(step), x, residual, out)
            found.append(Worst(share, step.name, step.choice.name))
            values[step.output] = _by_torch(step, x, residual)[0]
        else:
            values[step.output] = step.module(x)
        for value in dead:
            del values[value]
    return max(found)
