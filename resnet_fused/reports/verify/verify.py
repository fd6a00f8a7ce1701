"""Whether this machine computes right: every op on every backend, and the model, against float64, beside eager's error."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from ... import dispatch
from .. import table
from .model import check_model
from .ops import check_ops

COLUMNS = {
    "what": "check", "shape": "shape", "dtype": "dtype", "backend": "backend",
    "error": "error", "eager_error": "eager's", "budget": "of budget", "verdict": "",
}  # fmt: skip
OK_ALONE = "ok; torch's own result is wrong here"
PASSES = ("ok", OK_ALONE)
# On a CPU the dtypes that its kernels are for: torch emulates float16 there, which takes minutes.
DEFAULT_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}


class Report:
    """`rows`: one dict per check with the keys of COLUMNS; `passed`: whether each is within its budget."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row["verdict"] in PASSES for row in self.rows)

    def __str__(self) -> str:
        failed = sum(row["verdict"] not in PASSES for row in self.rows)
        worst = max((row["budget"] for row in self.rows if row["budget"] != ""), default="none")
        verdict = f"FAILED: {failed} of {len(self.rows)} checks" if failed else f"passed: {len(self.rows)} checks"
        rule = "the budget is 2x eager's own error against float64; errors are relative to the largest exact value"
        return f"{table.render(COLUMNS, self.rows)}\n\n" + table.fit(f"{verdict}, worst {worst} of the budget ({rule})")


def verify(
    device: Literal["cpu", "cuda"] | None = None,
    dtypes: Iterable[torch.dtype] | None = None,
    quick: bool = False,
    progress: Callable[[str], Any] | None = None,
) -> Report:
    """Checks every op on every available backend of `device` and ResNet-34 in evaluation, training and frozen.

    Args:
        device: "cpu" or "cuda"; default: the GPU if there is one.
        dtypes: default: float32 and bfloat16 on a CPU, float16 too on a GPU.
        quick: small shapes.
        progress: called with a text before every check.

    Raises:
        ValueError: an unknown device or one that is not there.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in DEFAULT_DTYPES:
        raise ValueError(f"device must be cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no CUDA device")
    rows = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), dispatch.strict():
        torch.manual_seed(0)
        for dtype in dtypes or DEFAULT_DTYPES[device]:
            for check in (check_ops, check_model):
                for label, compare in check(device, dtype, quick):
                    if progress is not None:
                        progress(" ".join(label.values()))
                    rows.append(_row(label, compare))
    return Report(rows)


def _row(label, compare):
    """`compare()` gives (error, eager's error, share of the budget used), and may add whether eager's result is absurd."""
    row = dict.fromkeys(COLUMNS, "") | label
    try:
        with contextlib.ExitStack() as stack:
            if label["backend"] != "auto":
                stack.enter_context(dispatch.backend(label["backend"]))
            error, eager_error, share, *wrong = compare()
    except Exception as e:  # whatever a kernel raises is the result of its check
        return row | {"verdict": f"FAILED: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
    verdict = "FAILED" if not share <= 1 else OK_ALONE if any(wrong) else "ok"
    return row | {
        "error": f"{error:.1e}",
        "eager_error": f"{eager_error:.1e}",
        "budget": round(share, 2),
        "verdict": verdict,
    }
