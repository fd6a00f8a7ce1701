"""freeze() on the CPU: the numbers of eager, whatever runs the layers; the snapshot's rules."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
from resnets import narrow, pair

import resnet_fused
from resnet_fused.frozen.check import Errors
from resnet_fused.frozen.cpu import convolutions, measure, stem, winograd
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import with_lively_norms
from resnet_fused.models.resnet import BasicBlock, ResNet

# A ResNet has no convolution of groups: tests/kernels/cpu/test_depthwise.py, test_grouped.py.
WAYS = {*winograd.WINOGRAD, *convolutions.DIRECT, *convolutions.EXACT} - {convolutions.Depthwise, convolutions.Grouped}
ALL = {way.name: way for way in sorted(WAYS, key=lambda way: way.name)}


@pytest.fixture(autouse=True)
def _quick_tuning(monkeypatch):
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)


def check(model, theirs, x, dtype=torch.float32, factor=2.0, **kwargs):
    engine = resnet_fused.freeze(model, x, dtype=dtype, **kwargs)
    oracle = copy.deepcopy(theirs).double()(x.double()).detach()
    with torch.no_grad():
        eager = copy.deepcopy(theirs).to(dtype)(x.to(dtype))
    assert_within_budget(engine(x), eager, oracle, f"frozen {dtype}", channel_dim=None, factor=factor)
    return engine


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("resnet18", torch.float32, id="resnet18-fp32"),
        pytest.param("resnet18", torch.bfloat16, id="resnet18-bf16"),
        pytest.param("resnet50", torch.bfloat16, id="resnet50-bf16"),
    ],
)
def test_the_numbers_of_eager(name, dtype):
    ours, theirs = (m.eval() for m in pair(name))
    x = torch.randn(2, 3, 65, 47)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    engine = check(ours, theirs, x, dtype)
    assert engine(x[:1]).shape == (1, 1000) and engine(torch.randn(5, 3, 40, 40)).dtype == dtype  # other sizes run too
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    assert len(engine.rows) == sum(isinstance(m, torch.nn.Conv2d) for m in ours.modules())
    assert str(resnet_fused.explain(engine, x)).count("layer1.0.conv1") == 1


@pytest.mark.parametrize("way", ALL.values(), ids=ALL)
def test_every_way_gives_the_numbers_of_eager(monkeypatch, way):
    """Each kind of kernel in every layer that it can run. F(4x4,3x3) everywhere errs up to 1.8 times as much as a direct
    convolution (docs/design/winograd.md), which freeze() checks against the budget and this test must not depend on.
    """
    monkeypatch.setattr(cpu_engine.check, "errors", lambda *_: Errors(0.0, False))
    monkeypatch.setattr(
        cpu_engine,
        "candidates",
        lambda step, dtype, exact: (
            [way]
            if not step.pool and way.why_not(step, dtype) is None
            else [stem.Stem if step.pool else convolutions.Torch]
        ),
    )
    ours, theirs = (m.eval() for m in pair("resnet18"))
    engine = check(ours, theirs, torch.randn(2, 3, 64, 80), factor=4.0 if "F(4x4" in way.name else 2.0)
    assert way.name in {row["backend"] for row in engine.rows}


def test_torchvisions_model_option_a_and_wide_stems():
    _, theirs = (m.eval() for m in pair("resnet18"))
    check(theirs, theirs, torch.randn(1, 3, 64, 64))
    model = narrow("zero_pad").eval()
    check(model, model, torch.randn(2, 3, 40, 40))
    model.maxpool = torch.nn.Identity()
    check(model, model, torch.randn(2, 3, 24, 24))


def test_f4_is_dropped_where_it_is_not_accurate_enough(monkeypatch):
    def ways(step, dtype, exact):
        if step.pool:
            return [stem.Stem]
        return [w for w in convolutions.candidates(step, dtype, exact) if w is not convolutions.OneDNN] or [
            convolutions.OneDNN
        ]

    monkeypatch.setattr(cpu_engine, "candidates", ways)
    # As if F(4x4), then F(2x2) were the fastest kernels of every layer that they can run.
    order = (winograd.WinogradF4, winograd.WinogradF2)
    rank = {kernel: float(i) for i, kernel in enumerate(order)}
    monkeypatch.setattr(measure, "layer", lambda steps, able, *_: {w: rank.get(w, 9.0) for w in able})
    monkeypatch.setattr(cpu_engine.CpuEngine, "_measured", lambda self, key, able, measure: measure())
    shares = iter([1.5, 1.5, 0.5])  # at first, without it in the deep layers, without it anywhere
    monkeypatch.setattr(cpu_engine.check, "errors", lambda *_: Errors(next(shares), False))
    engine = resnet_fused.freeze(narrow().eval(), torch.randn(1, 3, 40, 40))
    backends = {row["backend"] for row in engine.rows}
    assert next(shares, None) is None
    assert any("F(2x2" in b for b in backends) and not any("F(4x4" in b for b in backends)


def test_f4_is_dropped_in_the_deep_layers_first(monkeypatch):
    monkeypatch.setattr(
        cpu_engine,
        "candidates",
        lambda step, dtype, exact: (
            [stem.Stem]
            if step.pool
            else [w for w in (winograd.WinogradF4, winograd.WinogradF2) if w.why_not(step, dtype) is None]
            or [convolutions.Direct]
        ),
    )
    monkeypatch.setattr(measure, "layer", lambda steps, able, *_: {w: float(i) for i, w in enumerate(able)})
    monkeypatch.setattr(cpu_engine.CpuEngine, "_measured", lambda self, key, able, measure: measure())

    def backends(*errors):
        left = iter(errors)
        monkeypatch.setattr(cpu_engine.check, "errors", lambda *_: Errors(*next(left)))
        engine = resnet_fused.freeze(resnet_fused.resnet18().eval(), torch.randn(1, 3, 32, 32))
        assert next(left, None) is None
        return {s.conv.in_channels: s.choice.name for s in engine._convolutions if s.conv.stride == (1, 1)}

    f2, f4 = winograd.WinogradF2.name, winograd.WinogradF4.name
    assert backends((0.5, False)) == dict.fromkeys((64, 128, 256, 512), f4)
    assert backends((1.5, False), (0.5, False)) == {64: f4, 128: f4, 256: f2, 512: f2}
    assert backends((1.5, False), (1.5, False), (0.5, False)) == dict.fromkeys((64, 128, 256, 512), f2)


@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
def test_networks_for_small_images(shortcut):
    model = with_lively_norms(resnet_fused.resnet20(shortcut=shortcut)).eval()
    engine = check(model, model, torch.randn(3, 3, 32, 32))
    assert len(engine.rows) == sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())


def test_refresh_reads_the_weights_again():
    model, x = narrow().eval(), torch.randn(1, 3, 40, 40)
    engine = resnet_fused.freeze(model, x)
    before = engine(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert torch.equal(engine(x), before)
    engine.refresh()
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_training_model_is_frozen_in_evaluation_and_left_in_training():
    model, x = narrow().train(), torch.randn(2, 3, 40, 40)
    model.layer2.eval()
    buffers = [b.clone() for b in model.buffers()]
    engine = resnet_fused.freeze(model, x)
    assert (
        model.training and not model.layer2.training and not model.layer2[0].bn1.training and model.layer1[0].training
    )
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(engine(x), copy.deepcopy(model).eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", cpu_engine.DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [256, 225])
def test_exact_keeps_a_nan_where_eager_has_it(dtype, size):
    model, x = narrow().eval(), torch.randn(1, 3, size, size)
    model.avgpool = model.fc = torch.nn.Identity()
    engine = resnet_fused.freeze(model, x, dtype=dtype, exact=True)
    assert not any("winograd" in row["backend"] for row in engine.rows)
    x[0, 1, 2, 3] = float("nan")
    ours = engine(x).view(1, 512, size // 32 + size % 2, -1)
    with torch.no_grad():
        h = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(h))))
    assert torch.equal(ours.isnan(), expected.isnan()) and 0 < expected.isnan().sum() < expected.numel()


def test_two_threads_at_once():
    model, x = narrow().eval(), torch.randn(4, 3, 48, 48)
    engine = resnet_fused.freeze(model, x)
    expected, wrong = engine(x), []

    def work():
        for _ in range(5):
            if not torch.allclose(engine(x), expected, rtol=1e-5, atol=1e-6):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_two_engines_in_two_threads():
    nets = narrow(), narrow("zero_pad")
    engines = [resnet_fused.freeze(net.eval(), torch.randn(4, 3, 48, 48)) for net in nets]
    x = torch.randn(4, 3, 48, 48)
    expected, wrong = [engine(x) for engine in engines], []
    assert not torch.allclose(*expected)

    def work(i):
        for _ in range(10):
            if not torch.allclose(engines[i](x), expected[i], rtol=1e-5, atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_runs_the_engine_of_its_parent():
    """As the workers of a DataLoader do, in one thread: a pool of OpenMP threads does not survive a fork."""
    program = """
import os, torch, resnet_fused
torch.set_num_threads(2)
model = resnet_fused.resnet20().eval()
x = torch.randn(2, 3, 32, 32)
engine = resnet_fused.freeze(model, x)
expected = engine(x)
with torch.no_grad():
    live = model(x)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    with torch.no_grad():
        good = torch.allclose(engine(x), expected, atol=1e-4) and torch.allclose(model(x), live, atol=1e-4)
    os._exit(0 if good else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(engine(x), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.slow("10,000 calls")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_does_not_grow_over_10000_calls():
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    engine = resnet_fused.freeze(model, x)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(500):
        engine(x)
    before = resident()
    for _ in range(10_000):
        engine(x)
    assert resident() - before < 4 << 20  # 10,000 logits would be 0.6 MB, 10,000 of the smallest maps 5


def test_what_cannot_be_frozen_is_refused_by_name():
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(TypeError, match="freeze: the forward of Sequential calls no convolution"):
        resnet_fused.freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)), x)
    with pytest.raises(ValueError, match=r"torch.float32 or torch.bfloat16, not torch.float16"):
        resnet_fused.freeze(narrow(), x, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"non-empty \[N, 3, H, W\], got \(3, 32, 32\)"):
        resnet_fused.freeze(narrow(), x[0])
    model = narrow().eval()
    model.register_forward_hook(lambda *args: None)
    with pytest.raises(TypeError, match="ResNet carries a hook"):
        resnet_fused.freeze(model, x)
    engine = resnet_fused.freeze(narrow().eval(), x)
    with pytest.raises(ValueError, match=r"x should be \[N, 3, H, W\], got \(1, 4, 32, 32\)"):
        engine(torch.randn(1, 4, 32, 32))
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        engine(x.double())
