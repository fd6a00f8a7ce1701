"""The engine for GPUs, call by call on a CPU: numbers, memory plan, batch policies, refusals; --device=cuda: with its graph."""

import threading

import pytest
import torch
from resnets import narrow, pair
from static_cases import check, frozen

import resnet_fused
from resnet_fused.frozen.gpu import layers, replay
from resnet_fused.frozen.gpu.engine import GpuEngine, freeze_gpu
from resnet_fused.frozen.memory_plan import MemoryPlan

pytestmark = pytest.mark.usefixtures("measured_here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_numbers_of_eager(device, dtype):
    _, theirs = (m.eval().to(device) for m in pair("resnet18"))
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    engine = check(theirs, torch.randn(2, 3, 65, 47, device=device), device, dtype)
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in theirs.modules())
    assert len(engine.rows) == convolutions + 1 and engine.rows[-1]["name"] == "avgpool+fc"
    assert str(resnet_fused.explain(engine, None)).count("layer1.0.conv1") == 1
    assert engine.memory["parameters"] > 11e6 * dtype.itemsize and engine.seconds.keys() == {"engine", "live"}


@pytest.mark.parametrize("kind", ["zero_pad", "identity-pool", "bottleneck"])
def test_other_networks(device, kind):
    model = narrow("zero_pad" if kind == "zero_pad" else "projection").eval().to(device)
    if kind == "bottleneck":
        model = narrow(block=resnet_fused.Bottleneck).eval().to(device)
    if kind == "identity-pool":
        model.maxpool = torch.nn.Identity()
    check(model, torch.randn(2, 3, 40, 40, device=device), device)


def writers(monkeypatch):
    """Layers that write into the plan, of torch's operators: what the kernels of a GPU do, in place."""

    class Writer(layers.Folded):
        writes_out = True

        def __call__(self, x, residual, out):
            assert out.is_contiguous(memory_format=torch.channels_last)
            overlapping = {t.untyped_storage().data_ptr() for t in (x, residual) if t is not None}
            assert out.untyped_storage().data_ptr() not in overlapping, "a layer would overwrite what it reads"
            return out.copy_(super().__call__(x, residual, None))

    def options(step, dtype, device):
        return {"writer": layers._plain(Writer, step)}

    monkeypatch.setattr(layers, "options", options)


@pytest.mark.parametrize("shortcut", ["projection", "zero_pad", "identity-pool"])
def test_the_plan_shares_memory_and_overwrites_nothing(monkeypatch, shortcut):
    """The pool that returns its input: the stem's slot may not be given back before the block that reads it is done."""
    writers(monkeypatch)
    kind = "projection" if shortcut == "identity-pool" else shortcut
    model = resnet_fused.ResNet(resnet_fused.BasicBlock, [2, 2, 2, 2], num_classes=5, shortcut=kind).eval()
    size, side = 64, 16
    if shortcut == "identity-pool":
        model.maxpool, size, side = torch.nn.Identity(), 40, 20
    engine = check(model, torch.randn(2, 3, size, size), "cpu")
    largest = 2 * 64 * side * side * 4
    assert 2 * largest <= engine.memory["activations"] <= 4 * largest
    assert {row["backend"] for row in engine.rows[:-1]} == {"writer"}  # the last is the head


def test_a_plan_takes_what_fits_best_and_grows_what_grows_least():
    plan = MemoryPlan()
    small, large = plan.take((1, 1, 2, 2)), plan.take((1, 1, 4, 4))
    assert plan.values[small][0] != plan.values[large][0], "both are alive"
    plan.give_back(small)
    plan.give_back(large)
    assert plan.values[plan.take((1, 1, 2, 1))][0] == plan.values[small][0]
    assert plan.values[plan.take((1, 1, 5, 5))][0] == plan.values[large][0] and plan.sizes == [4, 25]
    plan = MemoryPlan()
    for shape, dtype in (((2, 3, 2, 1), torch.float16), ((1, 5, 1, 1), torch.uint8)):
        plan.give_back(plan.take(shape, dtype.itemsize))
    tensors = plan.allocate([torch.float16, torch.uint8], "cpu")
    assert [tuple(t.shape) for t in tensors] == [shape for _, shape in plan.values] and plan.sizes == [24]
    assert [t.dtype for t in tensors] == [torch.float16, torch.uint8]
    assert tensors[0].data_ptr() == tensors[1].data_ptr() and tensors[0].stride(1) == 1


def test_exact_refuses_other_shapes_in_one_line(device):
    x = torch.randn(2, 3, 32, 32, device=device)
    engine = frozen(narrow().eval().to(device), x, device)
    for wrong, message in (
        (x[:1], r"x should be \[2, 3, 32, 32\], got \(1, 3, 32, 32\); freeze with batch='pad'"),
        (x[:, :, :, :31], r"got \(2, 3, 32, 31\)"),
        (x[0], r"got \(3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine(wrong)
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        engine(x.double())


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_pad_takes_any_batch(device, count):
    model = narrow().eval().to(device)
    x = torch.randn(count, 3, 32, 32, device=device)
    engine = frozen(model, torch.randn(4, 3, 32, 32, device=device), device, batch="pad")
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="empty batch"):
        engine(x[:0])
    with pytest.raises(ValueError, match=r"x should be \[N, 3, 32, 32\]"):
        engine(torch.randn(1, 3, 33, 32, device=device))


def test_refresh_writes_into_the_same_memory(device):
    model, x = narrow().eval().to(device), torch.randn(2, 3, 32, 32, device=device)
    engine = frozen(model, x, device)
    addresses = [t.data_ptr() for step in engine._convolutions for t in step.run.tensors.values()]
    before = engine(x)
    with torch.no_grad():
        for t in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("running_var"))):
            t.mul_(1.1)
    assert torch.equal(engine(x), before), "a snapshot"
    engine.refresh()
    assert addresses == [t.data_ptr() for step in engine._convolutions for t in step.run.tensors.values()]
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-5)


def test_results_of_earlier_calls_stay(device, monkeypatch):
    if device == "cpu":
        writers(monkeypatch)
    model, inputs = narrow().eval().to(device), [torch.randn(2, 3, 32, 32, device=device) for _ in range(4)]
    engine = frozen(model, inputs[0], device)
    expected = [engine(x).clone() for x in inputs]
    wrong = []

    def work(i):
        for _ in range(10):
            if not torch.equal(engine(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_wrong_layer_is_refused_by_name(monkeypatch):
    """A layer that forgets 1 % of its bias: alone it is never chosen; where there is no other, nothing is frozen."""

    class Wrong(layers.Folded):
        def _values(self, dtype):
            found = super()._values(dtype)
            return found | {"bias": found["bias"] * 0.99}

    options = layers.options
    model, x = pair("resnet18")[1].eval(), torch.randn(2, 3, 64, 64)

    def with_wrong(step, dtype, device):
        return {"wrong": layers._plain(Wrong, step)} | options(step, dtype, device)

    monkeypatch.setattr(layers, "options", with_wrong)
    assert {row["backend"] for row in frozen(model, x).rows} == {"torch"}

    def only_wrong(step, dtype, device):
        return {"wrong": Wrong} if step.name == "layer2.0.conv1" else options(step, dtype, device)

    monkeypatch.setattr(layers, "options", only_wrong)
    with pytest.raises(
        ValueError, match=r"of its error budget in torch.float32; the worst layer is layer2.0.conv1 \(wrong\)"
    ):
        frozen(model, x)


def test_wrong_arguments_are_refused_before_any_work():
    model, x = narrow(), torch.randn(1, 3, 32, 32)
    for kwargs, message in (
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"batch": "any"}, "batch should be 'exact' or 'pad', not 'any'"),
        ({"graph": True}, "graph=True needs a model on a CUDA device, not on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            freeze_gpu(model, x, **{"graph": False} | kwargs)
    with pytest.raises(ValueError, match=r"non-empty \[N, 3, H, W\]"):
        freeze_gpu(model, x[:0], graph=False)
    assert replay.BATCH == ("exact", "pad")


def test_the_steps_around_a_replay(waits):
    """Copy in, replay, copy out, with streams and graph replaced by stand-ins: what runs around them on a GPU."""
    model, x = narrow().eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        engine = GpuEngine(model, x, torch.float32, True, "pad")._made(x)
        results = [engine(x), engine(x[:1]), engine(x[1:]), engine(torch.cat([x, x[:2]]))]
        waited = len(waits)
        model.fc.weight.mul_(2)
        engine.refresh()
        results.append(engine(x))
        expected = [x, x[:1], x[1:], torch.cat([x, x[:2]])]
        doubled = model(x)
        model.fc.weight.div_(2)
        for ours, images in zip(results, expected, strict=False):
            torch.testing.assert_close(ours, model(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[-1], doubled, rtol=1e-4, atol=1e-5)
    assert waited >= 5 and set(waits) == {engine._replay.done}, "every call waits for the one before"
    assert engine._replay.x.is_contiguous(memory_format=torch.channels_last)
