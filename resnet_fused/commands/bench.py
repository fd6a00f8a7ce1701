"""Eager torch, the live model and frozen engines on the same input: whether they are equal, and how fast each is."""

import copy
import functools

import torch

from ..frozen.cpu.engine import DTYPES as FROZEN_DTYPES
from ..frozen.freeze import freeze
from ..frozen.gpu.engine import DTYPES as GPU_DTYPES
from ..measure import timing
from ..measure.accuracy import budget_used, exact
from ..measure.oracle import by_modules, in_float64
from ..reports import table

EQUALITY = {
    "name": "on the photo", "dtype": "dtype", "error": "error", "apart": "from eager", "budget": "of budget",
    "verdict": "",
}  # fmt: skip
SPEED = {
    "batch": "batch", "name": "model", "dtype": "dtype", "ms": "ms", "p20": "p20", "p80": "p80",
    "rate": "images/s", "speedup": "vs eager",
}  # fmt: skip


def _nhwc(t):
    return t.contiguous(memory_format=torch.channels_last)


def freezable(device, dtypes):
    """Those of `dtypes` in which freeze() makes engines on `device`."""
    return [d for d in dtypes if d in (FROZEN_DTYPES if device == "cpu" else GPU_DTYPES)]


def _in(model, dtype):
    """`model` itself where it has `dtype`, else a copy."""
    return model if model.conv1.weight.dtype == dtype else copy.deepcopy(model).to(dtype)


@torch.no_grad()
def equality(model, x, frozen_dtypes, step):
    """Yields rows with the keys of EQUALITY; errors against float64, relative to the largest logit. `step(text)`:
    progress. What needs a measurement of kernels comes after what does not."""
    step("float64")
    oracle = in_float64(model)(exact(x))
    scale = oracle.abs().max()

    def error(logits):
        return ((logits.double() - oracle).abs().max() / scale).item()

    def row_of(name, logits, eager):
        row = dict.fromkeys(EQUALITY, "") | {
            "name": name,
            "dtype": str(logits.dtype)[6:],
            "error": f"{error(logits):.1e}",
        }
        if eager is not None:
            share = budget_used(logits, eager, oracle, channel_dim=0)
            row["apart"] = f"{((logits.double() - eager.double()).abs().max() / scale).item():.1e}"
            row |= {"budget": f"{share:.2f}", "verdict": "equal" if share <= 1 else "NOT EQUAL"}
        return row

    for dtype in dict.fromkeys((x.dtype, *frozen_dtypes)):
        step(f"eager and ours in {str(dtype)[6:]}")
        plain = by_modules(_in(model, dtype))
        eager = plain(x.to(dtype))
        yield row_of("eager", eager, None)
        plain = plain.to(memory_format=torch.channels_last)
        yield row_of("eager, channels_last", plain(_nhwc(x.to(dtype))), None)
        if dtype == x.dtype:
            yield row_of("live", model(x), eager)
        if dtype in frozen_dtypes:
            step(f"freezing in {str(dtype)[6:]}: measuring kernels")
            yield row_of("frozen", freeze(model, x, dtype=dtype)(x).to(dtype), eager)


def contestants(model, x, dtype=None):
    """{name: function that makes a function x -> logits}: the models that every comparison of speed has. A caller may make them
    one at a time.

    `dtype`: of the frozen engine; None: that of `model`.
    """

    def channels_last():
        eager = by_modules(model).to(memory_format=torch.channels_last)
        return lambda x: eager(_nhwc(x))  # which copies nothing where x is channels_last already

    return {
        "eager": lambda: by_modules(model),
        "eager, channels_last": channels_last,
        "live": lambda: model,
        "frozen": lambda: freeze(model, x, dtype=dtype),
    }


@torch.no_grad()
def speed(model, x, frozen_dtypes, seconds, step):
    """Rows with the keys of SPEED for one batch `x`, and the timings {(name, dtype): Timing}."""
    step(f"batch {len(x)}: freezing")
    dtype = str(x.dtype)[6:]
    made = {(name, dtype): make() for name, make in contestants(model, x).items() if name != "frozen"}
    made |= {("frozen", str(frozen)[6:]): contestants(model, x, frozen)["frozen"]() for frozen in frozen_dtypes}
    inputs = {key: _nhwc(x) if key[0] == "eager, channels_last" else x for key in made}
    runs = {key: functools.partial(run, inputs[key]) for key, run in made.items()}
    timings = timing.interleaved(
        runs, seconds=seconds, device=x.device.type, on_round=lambda i: step(f"batch {len(x)}: round {i + 1}")
    )
    first = timings["eager", dtype]
    rows = [
        {
            "batch": len(x), "name": name, "dtype": kind, "ms": f"{1e3 * t.median:.1f}", "p20": f"{1e3 * t.p20:.1f}",
            "p80": f"{1e3 * t.p80:.1f}", "rate": f"{len(x) / t.median:.1f}", "speedup": f"{t.speedup_over(first):.2f}x",
        }
        for (name, kind), t in timings.items()
    ]  # fmt: skip
    return rows, timings


def equality_line(row):
    """A row of `equality`, or EQUALITY itself, in columns that fit every row: it is shown before the next one is known."""
    widths = {"name": 20, "dtype": 8, "error": 7, "apart": 10, "budget": 9, "verdict": 9}
    return "  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip()


def speed_text(rows):
    return table.render(SPEED, rows)
