"""Experiments: the same is done to a fused network and to torchvision's or timm's own, and what comes out is compared.

What ran is told by the recorded kernels and by the recorded reasons why a block, or a part of it, ran module by module.
"""

import contextlib
import re
import warnings
from unittest import mock

import pytest
import torch
from foreign import fused_and_eager

import resnet_fused
from resnet_fused import dispatch

HOLDERS = ("ours", "torchvision", "timm")
each_holder = pytest.mark.parametrize("holder", HOLDERS)


@contextlib.contextmanager
def reasons_of(model):
    """Collects why blocks of `model` (and of its copies) ran module by module."""
    reasons, classes = [], {type(m) for m in model.modules() if hasattr(m, "why_not_fused")}
    with contextlib.ExitStack() as stack:
        for cls in classes:

            def watched(self, x, real=cls.why_not_fused):
                why = real(self, x)
                if why not in (None, "device meta"):  # on the meta device only shapes are asked for
                    reasons.append(why)
                return why

            stack.enter_context(mock.patch.object(cls, "why_not_fused", watched))
        yield reasons


def attempt(action, model):
    """(tensors or the exception, recorded kernels, reasons) of `action(model, x)`."""
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), dispatch.record() as rows, reasons_of(model) as reasons, resnet_fused.strict(False):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        try:
            found = [t.detach() for t in action(model, x)]
        except Exception as error:  # whatever torch raises is the result
            found = error
    programs = [getattr(type(m), "_program", None) for m in model.modules()]
    reasons += [f"{path} {why}" for program in programs if program for path, why in program.unfused]
    return found, rows, set(reasons)


def check(holder, action, why=None, fused=True):
    """Every tensor of `action(model, x)` is eager's, within a tolerance for its dtype and relative to its own size.

    fused: whether any fused op ran. why: what the one reason is why a block or a part of it ran module by module; None: none.
    """
    model, reference = fused_and_eager(holder)
    (ours, rows, reasons), (eager, *_) = attempt(action, model), attempt(action, reference)
    for found in (ours, eager):
        if isinstance(found, Exception):
            raise found
    assert len(ours) == len(eager)
    for a, b in zip(ours, eager, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        tolerance = 0.05 if b.dtype in (torch.float16, torch.bfloat16) else 5e-3
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm() + 1e-4
    assert bool(rows) is fused
    assert len(reasons) == (why is not None) and all(why in reason for reason in reasons), reasons


def check_refused(holder, action, error, match, in_eager=True):
    """`action(model, x)` raises `error`, and so it does to the eager network, or that one takes it."""
    model, reference = fused_and_eager(holder)
    (ours, *_), (eager, *_) = attempt(action, model), attempt(action, reference)
    assert type(ours) is error and re.search(match, str(ours)), ours
    assert type(eager) is error if in_eager else not isinstance(eager, Exception), eager


def test_a_difference_is_seen():
    """Wrong numbers, a fallback, a reason, and an error that is not expected."""

    def off(model, x):
        return [model(x) * (1.1 if hasattr(model, "why_not_fused") else 1)]

    def fine(model, x):
        return [model(x)]

    for wrong in (
        lambda: check("ours", off),
        lambda: check("ours", fine, fused=False),
        lambda: check("ours", fine, "a hook"),
        lambda: check_refused("ours", fine, ValueError, ""),
    ):
        with pytest.raises(AssertionError):
            wrong()
    with pytest.raises(ZeroDivisionError):
        check("ours", lambda model, x: 1 / 0)
    check_refused("ours", lambda model, x: 1 / 0, ZeroDivisionError, "division")
