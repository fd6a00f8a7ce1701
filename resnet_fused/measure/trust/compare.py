"""Runs a family of a backend on its cases and compares."""

import functools

import torch

from ..accuracy import budget_used, channel_dim_of, exact
from . import cases, convolutions

# A convolution of float32 may err as one whose operands lack some bits does. Torch may have chosen an exact kernel where
# TF32 is allowed, and it may add in blocks, where a sum of 2304 terms in order errs by 34 half units in the last place.
OPERANDS, TF32_BITS, SUM_BITS = ("x", "filter", "filter2", "grad"), 13, 5


def shares(backend, family, device):
    """Yields (case, share of the error budget) of the calls of `family` on a torch.device, as they run.

    Raises KeyError for an op without cases, and whatever a launcher raises.
    """
    op = family.split(" ")[0]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        if op.endswith("fp8"):
            yield from convolutions.fp8_shares(op, backend.kernels[op], device)
            return
        for dtype in cases.DTYPES:
            for case in _cases(op, family, cases.Values(dtype, device), backend, device):
                yield f"{case.label}, {str(dtype).removeprefix('torch.')}", _share(op, backend, case)


def _cases(op, family, values, backend, device):
    if op in cases.PASSES:
        return cases.PASSES[op](values, backend, device)
    return convolutions.cases(op, family, values, backend, device)


def _share(op, backend, case):
    """The worst share of the error budget among the results of one call."""
    reference = convolutions.REFERENCES[op]
    with convolutions.tf32(case.tf32):
        kernel = backend.kernels[op]
        kernel = functools.partial(kernel, config=case.config) if case.config else kernel
        ours, eagers = case.launch(kernel, case.tensors), [case.launch(reference, case.tensors)]
    with convolutions.tf32(False):
        oracle = case.launch(reference, _each(exact, case.tensors))
        if "filter" in case.tensors and case.tensors["filter"].dtype == torch.float32:
            shortened = functools.partial(_shortened, bits=TF32_BITS if case.tf32 else SUM_BITS)
            eagers.append(case.launch(reference, _each(shortened, case.tensors, OPERANDS)))
    return max(
        min(budget_used(t, eager[name], oracle[name], channel_dim=channel_dim_of(t)) for eager in eagers)
        for name, t in ours.items()
    )


def _each(convert, tensors, names=None):
    return {
        name: convert(t) if t is not None and t.is_floating_point() and (names is None or name in names) else t
        for name, t in tensors.items()
    }


def _shortened(t, bits):
    return (t.view(torch.int32) & -(1 << bits)).view(torch.float32)


def why_wrong(backend, family, device):
    """(the number of calls, the first wrong one in a line or None). Raises whatever a launcher raises."""
    count = 0
    for case, share in shares(backend, family, device):
        count += 1
        if not share <= 1:
            return count, f"wrong numbers: {share:.2f} of the error budget ({case})"
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count, None
