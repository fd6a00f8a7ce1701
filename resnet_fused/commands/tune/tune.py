"""Measures every backend and launch configuration for the calls that a model really makes, and keeps the results.

From then on the dispatcher finds them in the table of this machine (measure/remembered.py). A backend whose result is outside
of its error budget is never chosen, however fast it is.
"""

import functools
import math
import time

import torch

from ... import dispatch
from ...measure import remembered, timing
from ...measure.accuracy import budget_used, channel_dim_of, exact
from ...reports import table
from . import calls
from .options import CONVOLUTIONS, convolution_of, options

COLUMNS = {"op": "op", "shape": "shape", "count": "calls", "choice": "fastest", "time": "time", "runner_up": "runner-up",
           "then": "its time", "default": "default"}  # fmt: skip

PER_CALL = 1.0  # seconds of timing: more do not make medians better
FINALISTS = 8  # so many are measured for that long; where there are more, one round each tells which these are


def tune(model, shape, dtype, *, train=False, seconds=60.0, again=False, step=lambda text: None):
    """Measures the calls of `model` on inputs of `shape` and `dtype`, the costliest first, for about `seconds`.

    Args:
        model: on the device that is meant; it is not run and not changed.
        train: the calls of a training step instead of those of an evaluation.
        again: also what this machine's table knows already. What was measured under load is always measured again.
        step: called with a text for every call, to show progress.

    Returns:
        (rows with the keys of COLUMNS, number of calls there was no time for).
    """
    device = next(model.parameters()).device
    with timing.on(device):
        return _tune(model, device, shape, dtype, train, seconds, again, step)


def _tune(model, device, shape, dtype, train, seconds, again, step):
    found = dict(calls.calls(model, shape, dtype, train))
    for call in [call for call in found if call.op == "conv_bn_relu_pair"]:
        for alone in calls.convolutions(call):  # where two launches are faster, each convolution runs as it is fastest
            found.setdefault(alone, found[call])
    ordered = sorted(found.items(), key=lambda item: -item[1] * _cost(item[0]))
    start, rows, left_out = time.monotonic(), [], 0
    for i, (call, count) in enumerate(ordered):
        left = seconds - (time.monotonic() - start)
        arguments = calls.tensors(call, device)
        keys = _keys(call, arguments)
        known = remembered.table(device).entries
        if again or not all(key in known and not known[key].disturbed for key in keys):
            if left <= 0:
                left_out += 1
                continue
            step(f"{i + 1} of {len(ordered)}: {call.op} {_shape(call)}")
            share = left / (len(ordered) - i)
            # The costliest calls come first and may take more than their share of compiling.
            measured = measure(call, arguments, device, min(PER_CALL, share), patience=max(share, left / 8))
            if measured is None:
                continue
            for key in keys:
                remembered.store(device, key, measured)
        rows.append(_row(call, count, arguments, remembered.table(device).entries[keys[0]]))
    return rows, left_out


def _cost(call):
    """What a call costs, roughly: the values of its input; of a convolution, times the values of a filter."""
    weight = call["weight"] if call.op in CONVOLUTIONS else None
    depth = math.prod(weight.shape[1:]) if weight is not None else 1
    return math.prod(call["x" if "x" in dict(call.arguments) else "grad"].shape) * depth


def _shape(call):
    return "x".join(map(str, call["x" if "x" in dict(call.arguments) else "grad"].shape))


def _keys(call, arguments):
    """The keys under which the dispatcher will look for this call; a backward asks for each of its passes."""
    with dispatch.record_keys() as keys, dispatch.strict(False), torch.no_grad():
        call.function()(*_fresh(call, arguments))
    return [key for key in keys if key.split()[0] == call.op] or list(dict.fromkeys(keys))


def _fresh(call, arguments):
    """The arguments, with copies of those that a call writes to."""
    names = [name for name, _ in call.arguments]
    written = ("running_mean", "running_var", "num_batches_tracked")
    return [a.clone() if n in written and a is not None else a for n, a in zip(names, arguments, strict=True)]


def measure(call, arguments, device, seconds, patience=math.inf):
    """The `remembered.Entry` of `call`, or None where nothing can run it. Every backend is tried. Configurations are
    tried until `patience` seconds have passed, since Triton compiles each."""
    start = time.monotonic()
    size = sum(t.nbytes for t in arguments if isinstance(t, torch.Tensor))
    count = min(4, timing.sets_needed(size, device.type))  # cold enough; more would only cost memory
    sets = [arguments, *(calls.tensors(call, device, seed) for seed in range(1, count))]
    gate, trials = _Gate(call, arguments), timing.Trials(device)
    runs, backends = {}, {}
    for name, (backend, config) in options(call, device).items():
        if config is not None and time.monotonic() - start > patience:
            continue
        run = functools.partial(_run, call, backend, config)
        with trials.trial():
            with dispatch.record() as noted:
                results = run(_fresh(call, arguments))
            # A backend that hands the call on to another (contiguous NCHW, say) is not measured under its own name.
            if noted[0][2].backend == backend and gate.passes(results):
                runs[name] = timing.rotating([functools.partial(run, one) for one in sets])
                backends[name] = (backend, config)
    if not runs:
        return None
    if len(runs) > FINALISTS:
        once = timing.compare(runs, seconds=0.0, min_rounds=1, device=device.type)
        fastest = sorted(once, key=lambda name: once[name].median)[:FINALISTS]
        runs = {name: run for name, run in runs.items() if name in fastest or backends[name][1] is None}
    watch = timing.Watch()
    timings = timing.compare(runs, seconds=seconds, min_rounds=3, device=device.type)
    load = round(watch.load(), 3) if device.type == "cpu" else 0.0
    order = sorted(timings, key=lambda name: timings[name].median)
    best, config = {}, {}
    for name in order:
        backend, chosen = backends[name]
        if backend not in best:
            best[backend] = timings[name].median
            if chosen:
                config[backend] = chosen
    ranking = {name: timings[name].median for name in order[:2]} if config else None
    return remembered.entry(best, config, ranking, load=load)


def _run(call, backend, config, arguments):
    with dispatch.backend(backend), dispatch.configured(config), torch.no_grad():
        return call.function()(*arguments)


class _Gate:
    """Whether results stay within the error budget, by the rule of all tests (measure/accuracy.py)."""

    def __init__(self, call, arguments):
        with dispatch.backend(dispatch.EAGER.name), torch.no_grad():
            self.eager = _tuple(call.function()(*_fresh(call, arguments)))
            wide = [exact(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
            self.oracle = _tuple(call.function()(*_fresh(call, wide)))

    def passes(self, results):
        triples = zip(_tuple(results), self.eager, self.oracle, strict=True)
        return all(
            budget_used(ours, eager, oracle.double(), channel_dim=channel_dim_of(eager)) <= 1
            for ours, eager, oracle in triples
        )


def _tuple(results):
    return results if isinstance(results, tuple) else (results,)


def _row(call, count, arguments, entry):
    ways = sorted((s, name) for name, s in (entry.ranking or entry.seconds).items())
    x = next(a for a in arguments if isinstance(a, torch.Tensor))
    with dispatch.strict(False):
        default = dispatch.automatic(call.op, x, convolution_of(call)).backend
    return {
        "op": call.op, "shape": _shape(call), "count": count,
        "choice": ways[0][1], "time": remembered.duration(ways[0][0]),
        "runner_up": ways[1][1] if len(ways) > 1 else "-",
        "then": remembered.duration(ways[1][0]) if len(ways) > 1 else "-", "default": default,
    }  # fmt: skip


def text(rows, left_out):
    """The rows as a table."""
    lines = [table.render(COLUMNS, rows)] if rows else []
    if left_out:
        lines.append(f"no time for {left_out} more calls: the defaults apply there; --seconds gives more")
    return "\n".join(lines)
