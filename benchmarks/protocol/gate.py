"""Correctness before speed: the share of its error budget that a candidate uses (resnet_fused/measure/accuracy.py)."""

import torch

from resnet_fused.kernels.epilogue import NONE, RELU
from resnet_fused.measure.accuracy import budget_used, channel_dim_of, exact

# Float64 has no tensor cores and no oneDNN and takes long. So beyond this many values of x only the first images of an
# evaluation are compared, where an image does not depend on the others; in training all images are.
FEW = 1 << 24


def _wide(a):
    return {k: exact(v) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in a.items()}


def _first_images(case, a):
    images = max(1, FEW * a["x"].shape[0] // a["x"].numel())
    if case.op == "bn_relu" or images >= a["x"].shape[0]:
        return a, slice(None)
    return a | {k: a[k][:images] for k in ("x", "residual") if a.get(k) is not None}, slice(images)


def _tuple(out):
    return out if isinstance(out, tuple) else (out,)


class Forward:
    """`share(out)` of the budget for the arguments `a` of `case`."""

    def __init__(self, case, a):
        few, self.images = _first_images(case, a)
        with torch.no_grad():
            self.eager = _tuple(case.run(case.reference, copies(few)))
            self.oracle = _tuple(case.run(case.reference, _wide(few)))

    def share(self, out):
        return max(
            budget_used(ours[self.images].detach(), eager, oracle, channel_dim=channel_dim_of(eager))
            for ours, eager, oracle in zip(_tuple(out), self.eager, self.oracle, strict=True)
        )


class Backward:
    """The same for gradients, each exact for the ReLU mask of the output it belongs to; `share` is that of the worst."""

    def __init__(self, case, a, grad):
        self.case, self.a, self.grad = case, a, grad
        out, grads = gradients(case, case.reference, a, grad)
        self.eager, self.oracle_eager = grads, self._oracle(out)

    def _oracle(self, out):
        mask = (
            ~(out.detach() <= 0) if self.a.get("activation", RELU) == RELU else torch.ones_like(out, dtype=torch.bool)
        )
        case = self.case
        function = (lambda x, residual: x + residual) if case.op == "add_relu" else case.reference
        return gradients(case, function, _wide(self.a) | {"activation": NONE}, exact(self.grad), mask)[1]

    def share(self, out, grads):
        oracle = self._oracle(out)
        return max(
            budget_used(ours, eager, exactly, exactly_eager, channel_dim=channel_dim_of(eager))
            for ours, eager, exactly, exactly_eager in zip(grads, self.eager, oracle, self.oracle_eager, strict=True)
        )


def gradients(case, function, a, grad, mask=None):
    """(output, gradients of what the case differentiates)."""
    named, leaves = case.differentiable(copies(a))
    out = case.run(function, named)
    return out, torch.autograd.grad(out if mask is None else out * mask, leaves, grad)


def copies(a):
    """`a` with copies of the running statistics, which a call updates in place: every candidate gets its own."""
    return a | {name: a[name].clone() for name in ("mean", "var", "var_or_invstd") if a.get(name) is not None}
