"""What people do to a ResNet, and what then runs: every cell is an experiment. write_matrix.py makes docs/matrix.md of them.

A cell does the same to a fused network and to torchvision's or timm's own, compares what comes out, and tells from the
recorded kernels and the recorded reasons: fused, by fallback (why), or refused (message).
"""

import contextlib
import warnings
from pathlib import Path
from unittest import mock

import torch
from foreign import fused_and_eager

import resnet_fused
from resnet_fused import dispatch

COLUMNS = {"ours": "resnet_fused", "torchvision": "torchvision, converted", "timm": "timm, converted"}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "matrix.md"
X = (3, 3, 32, 32)
ROWS = {}  # label: (group, action)
GROUP = {"now": ""}


def row(label):
    def register(action):
        ROWS[label] = (GROUP["now"], action)
        return action

    return register


def backward(out, model):
    """The output and all gradients."""
    out.square().mean().backward()
    return [out, *(p.grad for p in model.parameters() if p.grad is not None)]


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


def attempt(action, model, x):
    """(result or the exception, recorded kernels, reasons)"""
    with warnings.catch_warnings(), dispatch.record() as rows, reasons_of(model) as reasons, resnet_fused.strict(False):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        try:
            return [t.detach() for t in action(model, x)], rows, reasons
        except Exception as e:  # whatever torch raises is the result
            return e, rows, reasons


def same(ours, eager):
    """Every tensor within a tolerance for its dtype, relative to its own size."""
    assert len(ours) == len(eager), f"{len(ours)} tensors, in eager {len(eager)}"
    for a, b in zip(ours, eager, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        tolerance = 0.05 if b.dtype in (torch.float16, torch.bfloat16) else 5e-3
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm() + 1e-4
    return ours


def message(error):
    first = str(error).strip().splitlines()[0]
    return f"{type(error).__name__}: {first if len(first) <= 100 else first[:97] + '...'}".replace("|", "/")


def cell(label, holder):
    """The text of a cell. Raises AssertionError where fused and eager differ."""
    action, x = ROWS[label][1], torch.randn(X, generator=torch.Generator().manual_seed(0))
    model, reference = fused_and_eager(holder)
    ours, rows, reasons = attempt(action, model, x)
    eager, _, _ = attempt(action, reference, x)
    if isinstance(ours, Exception):
        if isinstance(eager, Exception):
            assert type(ours) is type(eager), f"{message(ours)}; in eager {message(eager)}"
            return f"refused as in eager ({message(ours)})"
        return f"refused ({message(ours)})"
    assert not isinstance(eager, Exception), f"works, but eager refuses: {message(eager)}"
    same(ours, eager)
    plans = [getattr(type(m), "_program", None) for m in model.modules()]
    reasons += [f"{path} {reason}" for plan in plans if plan for path, reason in plan.unfused]
    why = "; ".join(dict.fromkeys(reasons))
    if not rows:
        return f"by fallback ({why or 'the graph is of torch operators'})"
    return f"fused but for one ({why})" if why else "fused"


def table():
    """{label: [text of every cell]}"""
    return {label: [cell(label, holder) for holder in COLUMNS] for label in ROWS}


def render(cells, networks):
    """The document. `networks`: the lines of its first table."""
    lines = [
        "# What works, and what runs",
        "",
        "Generated from tests by `python tests/write_matrix.py`; `tests/test_matrix.py` repeats every experiment. In each",
        "cell the same is done to a fused network and to torchvision's or timm's own, and what comes out is compared:",
        "values, gradients and statistics, errors by their type.",
        "",
        "**fused**: fused ops ran everywhere. **fused but for one**: one block or one of its children ran by itself, for the",
        "reason given. **by fallback**: torch's own operators, for the reason given. **refused**: the message. Small",
        "networks on a CPU, torch 2.13.",
        *networks,
    ]
    group = None
    for label, texts in cells.items():
        if ROWS[label][0] != group:
            group = ROWS[label][0]
            heads = list(COLUMNS.values())
            lines += ["", f"## {group}", "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def documented():
    """{label: [text of every cell]} as docs/matrix.md has it."""
    rows = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in rows if cells[0].strip()}
