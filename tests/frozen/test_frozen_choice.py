"""What a static engine chooses: kernels of the emulator, pairs, the fused head; and the live model where that is faster."""

import functools
import warnings

import pytest
import torch
from resnets import narrow
from static_cases import check

import resnet_fused
from resnet_fused.frozen.gpu import engine as gpu_engine
from resnet_fused.frozen.gpu import layers, measure, pair
from resnet_fused.frozen.gpu.engine import GpuEngine, LiveCopy, freeze_gpu
from resnet_fused.measure import timing

pytestmark = pytest.mark.usefixtures("measured_here")


@pytest.fixture
def emulated(monkeypatch):
    """Every way of the emulator passes its gate, and the kernel that does most is called the fastest."""
    from emulator import as_backend

    if (why := as_backend.measured(monkeypatch)) is not None:
        pytest.skip(why)
    options, why_not, tried = layers.options, pair.why_not, []

    def small(step, dtype, device):  # 64 channels at most: an emulated multiplication takes 10 ns
        found = options(step, dtype, device)
        return found if step.shape[1] <= 64 else {"torch": found["torch"]}

    def compare(able, made, *_):
        seconds = {}
        for candidate in able:
            functions, share = made(candidate)
            functions[0]()
            assert share <= 1, f"{candidate.name}: {share:.2f} of the error budget"
            tried.append(candidate.name)
            ranks = {"paired": 4, "pool fused": 3, "cluster": 2, "splits": 1}
            rank = next((rank for what, rank in ranks.items() if what in candidate.name), 0)
            seconds[candidate] = 1.0 / (1 + rank) if candidate.name.startswith("emulator") else 2.0
        return seconds

    monkeypatch.setattr(layers, "options", small)
    monkeypatch.setattr(layers, "CHOICES", 1)
    monkeypatch.setattr(layers, "CLUSTERS", 1)
    monkeypatch.setattr(pair, "why_not", lambda *steps: why_not(*steps) or ("slow" if steps[0].shape[1] > 64 else None))
    monkeypatch.setattr(measure, "compare", compare)
    monkeypatch.setattr(measure, "beside_live", lambda engine, example: {})
    return tried


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_kernels_of_the_emulator_run_in_the_engine(emulated, kind):
    """CUDA kernels with batch norm in their epilogue, in the memory of the plan: the stem with its pool, slices in a cluster
    that are launched early, a block's first convolution with its projection, the head."""
    model = narrow(**({} if kind == "basic" else {"block": resnet_fused.Bottleneck})).eval()
    engine = check(model, torch.randn(1, 3, 32, 32), "cpu", torch.float16)
    rows = {row["name"]: row for row in engine.rows}
    assert rows["conv1"]["backend"] == "emulator, pool fused" and rows["avgpool+fc"]["backend"] == "emulator"
    first, other = ("layer2.0", "layer1.0.conv2") if kind == "basic" else ("layer1.0", "layer1.0.conv2")
    paired = rows[f"{first}.conv1"]["backend"]
    assert paired.endswith(", paired") and rows[f"{first}.downsample"]["backend"] == paired
    assert rows[other]["backend"].startswith("emulator ") and rows[other]["backend"].endswith(", cluster")
    assert "apart" in emulated and "torch" in emulated and any(name.endswith("splits=1") for name in emulated)
    assert str(resnet_fused.explain(engine, None)).count(", paired") == 2
    before = engine(x := torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        for t in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("running_var"))):
            t.mul_(1.1)
    assert torch.equal(engine(x), before), "a snapshot"
    engine.refresh()
    with torch.no_grad(), resnet_fused.backend("torch"):
        torch.testing.assert_close(engine(x).float(), model(x), rtol=2e-2, atol=2e-2)


def slow_layers(monkeypatch, copy=1.0):
    """As if the live model took a second, its layers 3, and a frozen copy of it `copy`. All of them run."""

    class Slow(layers.Folded):
        pass

    def beside_live(engine, example):
        engine(example)
        took = copy if isinstance(engine._program, LiveCopy) else 3.0
        return {"engine": timing.Timing((took,)), "live": timing.Timing((1.0,))}

    monkeypatch.setattr(layers, "options", lambda *_: {"slow": functools.partial(_plain_slow, Slow)})
    monkeypatch.setattr(measure, "beside_live", beside_live)
    monkeypatch.setattr(gpu_engine, "FALLS_BACK", ("cpu",))


def _plain_slow(kind, step, dtype):
    return layers._plain(kind, step)(step, dtype)


@pytest.mark.parametrize("graph", [False, True], ids=["calls", "graph"])
def test_the_live_model_runs_where_the_layers_are_slower(monkeypatch, waits, graph):
    slow_layers(monkeypatch)
    model, x = narrow().train(), torch.randn(2, 3, 32, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = GpuEngine(model, x, torch.float32, graph, "pad")._made(x)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {row["backend"] for row in engine.rows} == {"live"} and len(engine.rows) == 13
    assert all(row["reason"].startswith("measured: the live model, frozen whole: ") for row in engine.rows)
    assert engine.seconds["engine"] == 1.0 and engine.memory["activations"] is None
    assert engine.memory["parameters"] >= sum(p.nbytes for p in model.parameters())
    model.eval()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(engine(x[:1]), expected[:1], rtol=1e-4, atol=1e-5)
        model.fc.weight.mul_(2)
        model.bn1.running_var.mul_(2)
        torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)  # a snapshot
        engine.refresh()
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_is_slower_and_has_nothing_faster_is_said(monkeypatch):
    slow_layers(monkeypatch, copy=4.0)
    model, x = narrow().eval(), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"freeze: the engine takes .* ms, the live model .* ms"):
        engine = freeze_gpu(model, x, graph=False)
    assert {row["backend"] for row in engine.rows} == {"slow", "torch"}
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


def cannot(self, x):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("call", [lambda self, x: self.copy(x) + 1, cannot], ids=["wrong", "not-captured"])
def test_a_live_model_outside_of_its_budget_or_of_a_graph_is_not_taken(monkeypatch, call):
    slow_layers(monkeypatch)
    monkeypatch.setattr(LiveCopy, "__call__", call)
    with pytest.warns(UserWarning, match="freeze: the engine takes"):
        engine = freeze_gpu(narrow().eval(), torch.randn(2, 3, 32, 32), graph=False)
    assert {row["backend"] for row in engine.rows} == {"slow", "torch"}


def test_an_engine_of_the_live_model_is_saved_as_the_network_it_is(monkeypatch, tmp_path):
    pytest.importorskip("safetensors.torch")
    slow_layers(monkeypatch)
    x = torch.randn(2, 3, 32, 32)
    engine = freeze_gpu(narrow().eval(), x, graph=False)
    assert {row["backend"] for row in engine.rows} == {"live"}
    engine.save(tmp_path / "engine.safetensors")
    torch.testing.assert_close(
        resnet_fused.load_engine(tmp_path / "engine.safetensors")(x), engine(x), rtol=1e-4, atol=1e-5
    )


def test_a_head_of_another_kind_stays_torchs():
    model = narrow().eval()
    model.avgpool = torch.nn.AdaptiveAvgPool2d((1, None))
    model.fc = torch.nn.Linear(512 * 2, 5)
    engine = check(model, torch.randn(2, 3, 40, 40), "cpu")
    assert engine.rows[-1]["backend"] == "torch" and engine(torch.randn(2, 3, 40, 40)).shape == (2, 5)
