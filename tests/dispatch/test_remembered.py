"""The cache of measured choices: what it survives, and that the dispatcher follows it."""

import json
import threading
import warnings

import pytest
import torch
from cases import activation, channels
from resnets import narrow

import resnet_fused
from resnet_fused import dispatch, ops
from resnet_fused.frozen.cpu import measure
from resnet_fused.kernels.triton import schedule
from resnet_fused.measure import machine, remembered

FACTS = {"device": "test", "arch": "none", "torch": "0"}


pytestmark = pytest.mark.usefixtures("own_cache")


def entry(choice="native", **seconds):
    return remembered.entry({choice: 1e-6, **seconds})


def test_what_is_stored_is_found_by_the_next_process(own_cache):
    remembered.Table(FACTS).store({"a": entry(eager=2e-6)})
    found = remembered.Table(FACTS).entries["a"]
    assert (found.choice, found.seconds["eager"]) == ("native", 2e-6)
    assert found.reason() == "measured: 1.0 us; eager: 2.0 us"
    assert remembered.Table(FACTS | {"torch": "1"}).entries == {}, "another torch, another table"


def test_times_of_what_must_not_run_survive_and_are_not_shown():
    remembered.Table(FACTS).store({"a": entry(triton=float("inf"))})
    assert remembered.Table(FACTS).entries["a"].reason() == "measured: 1.0 us"


@pytest.mark.parametrize("content", [
    pytest.param("", id="empty"),
    pytest.param('{"version": 1, "entries": {', id="cut"),
    pytest.param("[1, 2]", id="a-list"),
    pytest.param('{"version": 99, "machine": {}, "entries": {}}', id="another-version"),
    pytest.param('{"version": 1, "machine": {"device": "test", "arch": "none", "torch": "0"}, "entries": {"a": {}}}',
                 id="incomplete-entry"),
])  # fmt: skip
def test_a_damaged_file_is_a_warning_and_kept(own_cache, content):
    path = remembered.Table(FACTS).path
    own_cache.mkdir()
    path.write_text(content)
    with pytest.warns(UserWarning, match="cannot be read"):
        table = remembered.Table(FACTS)
    assert table.entries == {}
    table.store({"a": entry()})
    assert remembered.Table(FACTS).entries.keys() == {"a"}
    assert path.with_suffix(".corrupt").read_text() == content


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    table = remembered.Table(FACTS, blocked / "cache")
    with pytest.warns(UserWarning, match="cannot be kept"):
        table.store({"a": entry()})
    assert table.entries["a"].choice == "native", "this process keeps it"


def test_writers_at_the_same_time_lose_nothing(own_cache):
    tables = [remembered.Table(FACTS) for _ in range(8)]

    def work(i):
        for j in range(5):
            tables[i].store({f"{i}-{j}": entry()})

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(remembered.Table(FACTS).entries) == 40
    assert [p.suffix for p in own_cache.iterdir()].count(".tmp") == 0


def test_a_reader_never_sees_half_a_file(own_cache, monkeypatch):
    table = remembered.Table(FACTS)
    table.store({"a": entry()})
    monkeypatch.setattr(json, "dump", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        table.store({"b": entry()})
    monkeypatch.undo()
    assert remembered.Table(FACTS, own_cache).entries.keys() == {"a"}
    assert not list(own_cache.glob("*.tmp"))


def test_shipped_tables_hold_for_their_device_and_give_way(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SHIPPED", tmp_path)
    remembered._shipped.cache_clear()
    shipped = {"a": entry("triton")._asdict(), "b": entry("cuda")._asdict()}
    content = {"version": 1, "machine": FACTS | {"torch": "older"}, "entries": shipped}
    (tmp_path / "tuning-test.json").write_text(json.dumps(content))
    remembered.Table(FACTS).store({"a": entry("eager")})
    choices = {key: e.choice for key, e in remembered.Table(FACTS).entries.items()}
    assert choices == {"a": "eager", "b": "cuda"}
    assert remembered.Table(FACTS | {"arch": "other"}).entries == {}
    remembered._shipped.cache_clear()


def conv_arguments():
    return activation((1, 8, 6, 6)), torch.randn(8, 8, 3, 3), channels(8)


def test_the_dispatcher_follows_what_was_measured():
    x, weight, parameters = conv_arguments()
    with dispatch.record_keys() as keys:
        before = ops.conv_bn_relu(x, weight, *parameters, padding=1)
    remembered.table(x.device).store({keys[0]: entry("eager", torch=3e-6)})
    with dispatch.record() as rows:
        after = ops.conv_bn_relu(x, weight, *parameters, padding=1)  # STRICT: a measured eager is no fallback
        ops.conv_bn_relu(x, weight, *parameters, padding=0)
    choices = [choice for op, _, choice in rows if op == "conv_bn_relu"]
    assert choices[0][:2] == ("eager", "measured: 1.0 us; torch: 3.0 us")
    assert choices[1].backend != "eager", "another padding is another key"
    torch.testing.assert_close(before, after)
    with resnet_fused.backend("native"), dispatch.record() as rows:
        ops.conv_bn_relu(x, weight, *parameters, padding=1)
    assert "measured" not in rows[0][2].reason, "what is asked for goes before what was measured"


def test_a_choice_that_cannot_run_here_is_ignored():
    x, weight, parameters = conv_arguments()
    with dispatch.record_keys() as keys:
        ops.conv_bn_relu(x, weight, *parameters, padding=1)
    for gone in ("cuda", "no such backend"):
        remembered.table(x.device).store({keys[0]: entry(gone)})
        with dispatch.record() as rows:
            ops.conv_bn_relu(x, weight, *parameters, padding=1)
        assert "measured" not in rows[0][2].reason


def test_explain_shows_the_choice_its_time_and_the_runner_up():
    model, x = narrow().eval(), torch.randn(2, 3, 40, 40)
    with dispatch.record_keys() as keys, torch.no_grad():
        model(x)
    remembered.table(x.device).store(
        {key: entry("eager", torch=1.5e-3) for key in keys if key.startswith("conv_bn_relu ")}
    )
    reasons = {row["reason"] for row in resnet_fused.explain(model, x).rows if row["op"] == "conv_bn_relu"}
    assert reasons == {"measured: 1.0 us; torch: 1.50 ms"}


def test_a_launch_configuration_reaches_the_kernel(monkeypatch):
    """The interpreter runs Triton's convolution with a tile that is not its default."""
    x, weight = activation((1, 32, 6, 6)), torch.randn(32, 32, 3, 3).to(memory_format=torch.channels_last)
    parameters = channels(32)
    seen = []
    conv_as = schedule.conv_as
    monkeypatch.setattr(schedule, "conv_as", lambda *args: seen.append(conv_as(*args)) or seen[-1])
    if dispatch.BACKENDS["triton"].simulated != "cpu":
        pytest.skip("needs Triton's interpreter")
    with dispatch.backend("triton"), dispatch.configured({"block_m": 16, "splits": 3}):
        ours = ops.conv_bn_relu(x, weight, *parameters, padding=1)
    assert (seen[0].block_m, seen[0].splits) == (16, 3)
    with resnet_fused.backend("eager"):
        torch.testing.assert_close(ours, ops.conv_bn_relu(x, weight, *parameters, padding=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(100_352, 64, 64, 9), (49, 512, 512, 9), (784, 256, 128, 9)])
def test_alternatives_cover_the_depth_and_fit(shape):
    m, k, c, taps = shape
    default = schedule.conv(m, k, c, taps, 1, 2, "ieee")
    assert schedule.conv_as(default, c, taps, {}) == default
    found = schedule.conv_alternatives(default, 2)
    assert len(found) >= 3
    for config in found:
        made = schedule.conv_as(default, c, taps, config)
        assert (
            made.splits * made.iterations_per_split >= made.iterations > (made.splits - 1) * made.iterations_per_split
        )
        assert made.num_stages * (made.block_m + made.block_k) * made.block_d * 2 <= 227 << 10


def test_the_key_names_everything_a_time_depends_on():
    facts = machine.identity(torch.device("cpu"))
    assert facts["torch"] == torch.__version__ and facts["threads"] == str(torch.get_num_threads())
    assert {"device", "arch", "library"} <= facts.keys()
    assert remembered.table(torch.device("cpu")) is remembered.table(torch.device("cpu"))


def test_frozen_choices_are_remembered(monkeypatch):
    model, x = narrow().eval(), torch.randn(1, 3, 40, 40)
    first = resnet_fused.freeze(model, x)
    for name in ("layer", "networks"):
        monkeypatch.setattr(measure, name, lambda *args: pytest.fail("known already"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = resnet_fused.freeze(model, x)
    assert [r["backend"] for r in first.rows] == [r["backend"] for r in second.rows]
    with remembered.ignored(), pytest.raises(pytest.fail.Exception):
        resnet_fused.freeze(model, x)
