"""Measurements of freeze() under load: noted, made again by the next process, replaced by quiet ones. No clock is read."""

import json

import pytest
import torch
from resnets import narrow

import resnet_fused
from resnet_fused.frozen.cpu import convolutions, cost, measure, winograd
from resnet_fused.measure import remembered, timing

pytestmark = pytest.mark.usefixtures("own_cache")
X = torch.randn(1, 3, 40, 40)


class Machine:
    """`load` while it measures; `asked`: how often it measured layers. The kernel named `best` is the fastest."""

    def __init__(self):
        self.load, self.asked, self.best = 0.0, 0, "onednn"

    def layer(self, steps, able, dtype, seconds):
        self.asked += 1
        times = {c: 1e-3 if self.best in c.name else 2e-3 for c in able}
        return timing.Times(times, dict.fromkeys(able, 0.25), self.load)

    def networks(self, ways, x, seconds):
        return timing.Times({way: float(i) for i, way in enumerate(ways)}, dict.fromkeys(ways, 0.0), 0.0)


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(measure, "layer", found.layer)
    monkeypatch.setattr(measure, "networks", found.networks)
    return found


def freeze(machine, next_process=True):
    """(the engine, how many layers were measured for it)."""
    if next_process:
        remembered.forget()
    before = machine.asked
    engine = resnet_fused.freeze(narrow().eval(), X)
    return engine, machine.asked - before


def layers_of(engine):
    return {
        key: entry for key, entry in engine.entries.items() if key.startswith("frozen ") and "onednn" in entry.seconds
    }


def test_what_was_measured_under_load_is_measured_again(machine):
    machine.load = 0.9
    loaded, measured = freeze(machine)
    assert measured > 0
    assert any("measurements were made while other processes had the cores" in note for note in loaded.notes)
    assert freeze(machine, next_process=False)[1] == 0, "one process measures once"
    machine.load, machine.best = 0.0, "direct"
    quiet, again = freeze(machine)
    assert again == measured and not any("measurements" in note for note in quiet.notes)
    assert all(entry.choice == "direct" for entry in layers_of(quiet).values())
    machine.load = 0.9
    assert freeze(machine)[1] == 0, "a quiet measurement holds"


@pytest.mark.parametrize(("later", "kept"), [(1.5, 0.9), (0.6, 0.6)])
def test_of_two_loaded_measurements_the_less_loaded_stays(machine, later, kept):
    machine.load = 0.9
    freeze(machine)
    machine.load = later
    engine, measured = freeze(machine)
    assert measured > 0 and {entry.load for entry in layers_of(engine).values()} == {kept}
    assert freeze(machine, next_process=False)[1] == 0


def test_an_engine_file_is_believed(machine, tmp_path):
    pytest.importorskip("safetensors.torch")
    machine.load = 0.9
    engine, _ = freeze(machine)
    engine.save(tmp_path / "engine.safetensors")
    remembered.forget()
    before = machine.asked
    assert resnet_fused.load_engine(tmp_path / "engine.safetensors").rows == engine.rows and machine.asked == before


def test_entries_hold_spread_and_load_and_older_files_load(machine):
    machine.load = 0.3
    engine, _ = freeze(machine)
    path = remembered.table(torch.device("cpu")).path
    content = json.loads(path.read_text())
    assert {content["entries"][key]["load"] for key in layers_of(engine)} == {0.3}
    assert all(content["entries"][key]["spread"]["onednn"] == 0.25 for key in layers_of(engine))
    for entry in content["entries"].values():
        del entry["spread"], entry["load"]
    path.write_text(json.dumps(content))
    older, measured = freeze(machine)
    assert measured == 0 and [row["backend"] for row in older.rows] == [row["backend"] for row in engine.rows]


@pytest.mark.parametrize(("seconds", "chosen"), [(1.005e-3, "small"), (1.03e-3, "fast")])
def test_of_equal_times_the_smallest_weights(machine, monkeypatch, seconds, chosen):
    kinds = {"fast": winograd.WinogradF2, "small": convolutions.OneDNN}
    times = {kinds["fast"]: 1e-3, kinds["small"]: seconds}
    monkeypatch.setattr(measure, "layer", lambda steps, able, *_: {c: times.get(c, 9e-3) for c in able})
    engine, _ = freeze(machine)
    found = {step.ranking[0] for step in engine._convolutions if kinds["fast"] in step.ranking}
    assert found == {kinds[chosen]}


def test_a_time_that_cannot_be_right_is_measured_again(machine):
    engine, _ = freeze(machine)
    step = next(step for step in engine._convolutions if not step.pool)
    siblings, should = cost.Siblings(), cost.seconds(step, torch.float32)

    def plausible(*multiples):
        left = [{"kernel": multiple * should} for multiple in multiples]
        found = siblings.plausible(step, torch.float32, lambda: left.pop(0))
        return round(found["kernel"] / should, 3), len(left)

    assert [plausible(1.0), plausible(1.2), plausible(2.0)] == [(1.0, 0), (1.2, 0), (2.0, 0)]
    assert plausible(0.1, 1.1) == (1.1, 0) and plausible(30.0, 1.1) == (1.1, 0)
    assert plausible(30.0, 30.0) == (30.0, 0), "slow twice is slow"
    assert plausible(4.0, 1.0) == (4.0, 1), "within 5 times the usual"
