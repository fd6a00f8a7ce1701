"""Tuning of the compiled convolutions: every tile is measured, the fastest is kept, used and shown."""

import pytest
import torch

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.commands.tune import calls, tune
from resnet_fused.kernels.backend import Kernels
from resnet_fused.measure import remembered, timing
from resnet_fused.ops.training.unit import Unit, convolve

ENOUGH = 3600.0  # seconds: a busy machine measures everything too
CPU = torch.device("cpu")
VECTOR = calls.Spec((64,), torch.float16, torch.contiguous_format)
X = calls.Spec((1, 64, 6, 6), torch.float16, torch.channels_last)
W, W1 = (calls.Spec((64, 64, r, r), torch.float16, torch.channels_last) for r in (3, 1))
NORM = tuple((name, VECTOR) for name in ("mean", "var", "bn_weight", "bn_bias"))
WHERE = (("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)))
CALLS = {
    "conv_bn_relu": (*NORM, ("residual", None), *WHERE, ("groups", 1), ("eps", 1e-5), ("activation", 1)),
    "conv_bn_relu_pair": (*NORM, *WHERE, ("eps", 1e-5), ("weight2", W1), *((f"{n}2", v) for n, v in NORM),
                          ("stride2", (1, 1)), ("eps2", 1e-5)),
    "conv_stats": (*WHERE, ("groups", 1), ("eps", 1e-5)),
}  # fmt: skip


@pytest.fixture
def clock(own_cache, monkeypatch):
    """The emulator among the backends, and times that are made up: {name of a way: seconds}; others take a second."""
    from emulator import as_backend

    if (why := as_backend.measured(monkeypatch)) is not None:
        pytest.skip(why)
    seconds, measured = {}, []

    def interleaved(runs, *, min_rounds=5, **_):
        measured.append(list(runs))
        for run in runs.values():
            run()
        return {name: timing.Timing((seconds.get(name, 1.0),) * min_rounds) for name in runs}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    monkeypatch.setattr(tune, "FINALISTS", 4)
    return seconds, measured


def call_of(op):
    return calls.Call(op, (("x", X), ("weight", W), *CALLS[op]))


@pytest.mark.parametrize("op", CALLS)
def test_every_tile_is_measured_and_the_fastest_kept(clock, op):
    seconds, measured = clock
    call = call_of(op)
    options = tune.options(call, CPU)
    tiles = {config["tile"] for name, config in options.values() if name == "emulator" and config}
    default = {"64x64"} if op == "conv_stats" else set()  # without slices a tile has one configuration, and this is it
    assert tiles | default == {"64x64", "128x64", "128x128", *(["apart"] if op.endswith("pair") else [])}
    best = next(name for name in options if name.startswith("emulator tile=128x64"))
    seconds |= {best: 1e-5, "emulator": 2e-5, "torch": 3e-5}
    entry = tune.measure(call, calls.tensors(call, CPU), CPU, 0.0)
    assert set(measured[0]) <= set(options) and {"emulator", best} <= set(measured[0])
    assert len(measured) == 2 and {"torch", "emulator", best} <= set(measured[1])
    assert (entry.choice, entry.config) == ("emulator", {"emulator": options[best][1]})
    assert entry.seconds["emulator"] == 1e-5 and entry.reason() == f"measured: {best} 10.0 us; emulator: 20.0 us"


def test_the_dispatcher_runs_the_tile_and_explain_shows_it(clock):
    seconds, _ = clock
    call = call_of("conv_bn_relu")
    seconds |= {"emulator tile=128x128 splits=1": 1e-5, "emulator tile=64x64 splits=1": 2e-5}
    arguments = calls.tensors(call, CPU)
    entry = tune.measure(call, arguments, CPU, 0.0)
    remembered.table(CPU).store(dict.fromkeys(tune._keys(call, arguments), entry))
    remembered.forget()  # as the next process finds it
    asked = []
    emulator = dispatch.BACKENDS["emulator"]

    def find(op):
        return lambda *args, config: asked.append((op, config)) or emulator.kernels[op](*args, config=config)

    dispatch.BACKENDS["emulator"] = emulator._replace(kernels=Kernels(emulator.kernels, find))
    block = resnet_fused.nn.ConvBNReLU(64, 64, 3, padding=1).eval().half().to(memory_format=torch.channels_last)
    x = arguments[0]
    report = resnet_fused.explain(block, x)
    assert asked == [("conv_bn_relu", {"tile": "128x128", "splits": 1})]
    (row,) = [row for row in report.rows if row["op"] == "conv_bn_relu"]
    assert row["backend"] == "emulator"
    assert row["reason"] == "measured: emulator tile=128x128 splits=1 10.0 us; emulator tile=64x64 splits=1: 20.0 us"
    other = torch.randn(1, 64, 7, 7).half().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        block(other)
    assert len(asked) == 1, "no other shape"


def test_a_convolution_with_statistics_takes_what_was_measured(clock):
    seconds, _ = clock
    call = call_of("conv_stats")
    seconds |= {"emulator tile=128x64": 1e-5}
    arguments = calls.tensors(call, CPU)
    remembered.table(CPU).store(dict.fromkeys(tune._keys(call, arguments), tune.measure(call, arguments, CPU, 0.0)))
    unit = Unit(arguments[1], None, None, None, None, [1, 1], [1, 1], [1, 1], 1, 1e-5)
    with dispatch.record() as noted:
        convolve(arguments[0], unit)
    ((op, _, choice),) = noted
    assert (op, choice.backend, choice.config) == ("conv_stats", "emulator", {"tile": "128x64"})
    seconds.clear()
    seconds |= {"torch": 1e-6}
    remembered.table(CPU).store(dict.fromkeys(tune._keys(call, arguments), tune.measure(call, arguments, CPU, 0.0)))
    with dispatch.record() as noted:
        convolve(arguments[0], unit)
    assert [op for op, _, _ in noted] == ["conv_stats", "bn_stats"], "two passes, since they were faster"
    assert noted[0][2].backend == "torch" and noted[0][2].reason.startswith("measured: 1.0 us")


def test_configurations_are_tried_only_while_there_is_time(clock):
    call = call_of("conv_bn_relu")
    entry = tune.measure(call, calls.tensors(call, CPU), CPU, 0.0, patience=0.0)
    assert entry.config == {} and {"emulator", "torch", "eager"} == set(entry.seconds) and entry.ranking is None


def test_tuning_a_pair_tunes_its_convolutions_alone_as_well(clock, monkeypatch):
    """Where they are faster apart, each runs as its own entry says."""
    call = call_of("conv_bn_relu_pair")
    monkeypatch.setattr(calls, "calls", lambda *_: {call: 2})
    rows, left_out = tune.tune(torch.nn.Linear(1, 1), (1,), torch.float16, seconds=ENOUGH)
    assert left_out == 0
    assert sorted((row["op"], row["count"]) for row in rows) == [("conv_bn_relu", 2)] * 2 + [("conv_bn_relu_pair", 2)]
