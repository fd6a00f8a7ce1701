"""engine.save and load_engine: the same logits, nothing unpickled, and errors in one line."""

import copy
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from resnets import narrow

import resnet_fused
from resnet_fused import freeze, load_engine
from resnet_fused.frozen import file
from resnet_fused.frozen.check import Errors
from resnet_fused.frozen.cpu import measure
from resnet_fused.frozen.cpu.engine import CpuEngine
from resnet_fused.frozen.gpu.engine import freeze_gpu
from resnet_fused.measure import remembered

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(engine, path, input) of a CPU engine."""
    model, x = narrow().eval(), torch.randn(2, 3, 40, 40)
    engine, path = freeze(model, x), tmp_path_factory.mktemp("engine") / "engine.safetensors"
    engine.save(path)
    return engine, path, x


def same(engine, loaded, x):
    assert type(loaded) is type(engine) and torch.equal(loaded(x), engine(x))
    assert [row["backend"] for row in loaded.rows] == [row["backend"] for row in engine.rows]


def test_an_engine_comes_back_without_measuring(saved, monkeypatch):
    engine, path, x = saved
    remembered.forget()
    for what in ("layer", "networks"):
        monkeypatch.setattr(measure, what, lambda *args: pytest.fail("the file says what is fastest"))
    loaded = load_engine(path)
    same(engine, loaded, x)
    assert str(resnet_fused.explain(loaded, x)) == str(resnet_fused.explain(engine, x))


@pytest.mark.parametrize("kind", ["zero_pad", "bottleneck", "identity-pool", "bfloat16", "static"])
def test_every_kind_of_network_and_engine(tmp_path, kind):
    model = (
        narrow(block=resnet_fused.Bottleneck)
        if kind == "bottleneck"
        else narrow("zero_pad" if kind == "zero_pad" else "projection")
    )
    if kind == "identity-pool":
        model.maxpool = torch.nn.Identity()
    model, x = model.eval(), torch.randn(2, 3, 40, 40)
    if kind == "static":
        engine = freeze_gpu(model, x, graph=False, batch="pad")
    else:
        engine = freeze(model, x, dtype=torch.bfloat16 if kind == "bfloat16" else None)
    engine.save(tmp_path / "e.safetensors")
    loaded = load_engine(tmp_path / "e.safetensors")
    same(engine, loaded, x)
    assert loaded.options == engine.options and loaded.dtype == engine.dtype


def test_a_loaded_engine_keeps_what_was_dropped_for_accuracy(tmp_path, monkeypatch):
    """The example of a loaded engine is noise, and says nothing about the images of the one that was saved."""
    model, x = narrow().eval(), torch.randn(2, 3, 40, 40)
    shares = iter([1.5, 1.5, 0.5])
    with monkeypatch.context() as patched:
        patched.setattr(CpuEngine, "_f4_layers", lambda self, channels=0: self._convolutions[1:2])
        patched.setattr("resnet_fused.frozen.check.errors", lambda *_: Errors(next(shares), False))
        engine = freeze(model, x)
    assert engine.options["f4_below"] == 0 and not any("F(4x4" in row["backend"] for row in engine.rows)
    engine.save(tmp_path / "e.safetensors")
    loaded = load_engine(tmp_path / "e.safetensors")
    same(engine, loaded, x)
    assert loaded.options == engine.options


class Holder(torch.nn.Module):
    def __init__(self, engine):
        super().__init__()
        self.engine = engine


COPIES = {
    "pickle": lambda engine: pickle.loads(pickle.dumps(engine)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a module that has it": lambda engine: copy.deepcopy(Holder(engine)).engine,
    "a copy of a copy": lambda engine: copy.deepcopy(copy.deepcopy(engine)),
}


@pytest.mark.parametrize("kind", ["cpu", "bfloat16", "static"])
@pytest.mark.parametrize("way", COPIES)
def test_engines_are_copied(way, kind):
    model, x = narrow().eval(), torch.randn(2, 3, 40, 40)
    if kind == "static":
        engine = freeze_gpu(model, x, graph=False)
    else:
        engine = freeze(model, x, dtype=torch.bfloat16 if kind == "bfloat16" else None)
    copied = COPIES[way](engine)
    assert copied is not engine and copied._model is not model and copied.device == engine.device
    same(engine, copied, x)


def answer(engine, x, results):
    results.put((os.getpid(), engine(x).tolist()))


def test_an_engine_goes_to_a_spawned_process(saved):
    engine, _, x = saved
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=answer, args=(engine, x, results))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    pid, logits = results.get()
    assert pid == process.pid != os.getpid() and logits == engine(x).tolist()


def test_what_is_saved_is_the_model_as_it_is_now(tmp_path):
    model, x = narrow().eval(), torch.randn(1, 3, 40, 40)
    engine = freeze(model, x)
    before = engine(x)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    engine.save(tmp_path / "e.safetensors")
    assert not torch.equal(engine(x), before)
    same(engine, load_engine(tmp_path / "e.safetensors"), x)


def test_a_way_that_cannot_run_here_is_measured_again(saved, tmp_path):
    engine, path, x = saved
    tensors = safetensors.load_file(path)
    with safetensors.safe_open(path, "pt") as f:
        header = json.loads(f.metadata()[file.KEY])
    for entry in header["measured"].values():
        entry["seconds"] = {"a kernel of another machine": 1e-9}
    changed = tmp_path / "other.safetensors"
    safetensors.save_file(tensors, changed, metadata={file.KEY: json.dumps(header)})
    torch.testing.assert_close(load_engine(changed)(x), engine(x), rtol=1e-4, atol=1e-5)


def test_a_network_that_a_file_cannot_describe_is_refused_by_name(tmp_path):
    class Pool(torch.nn.AdaptiveAvgPool2d):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else x.clone())

    model = narrow().eval()
    model.avgpool = Pool((1, 1))
    engine = freeze(model, torch.randn(1, 3, 40, 40))
    with pytest.raises(TypeError, match="save: avgpool is a Pool, which a file cannot describe"):
        engine.save(tmp_path / "e.safetensors")
    assert list(tmp_path.iterdir()) == [], "nothing half written"


def test_wrong_files(saved, tmp_path):
    _, path, _ = saved
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_engine(tmp_path / "nothing.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.safetensors")
    safetensors.save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    for name in ("pickled", "plain", "cut"):
        with pytest.raises(ValueError, match="is not a file of engine"):
            load_engine(tmp_path / f"{name}.safetensors")
    header = {"format": 99}
    safetensors.save_file({"a": torch.zeros(1)}, tmp_path / "later.safetensors", {file.KEY: json.dumps(header)})
    with pytest.raises(ValueError, match="has format 99, this package reads formats 1 to 3"):
        load_engine(tmp_path / "later.safetensors")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees none here"):
            load_engine(path, "cuda")


def test_a_file_of_the_first_format():
    """Written by the version that named the parts of a network instead of listing its steps."""
    path, x = Path(__file__).with_name("data") / "format_1.safetensors", torch.linspace(-1, 1, 2880).view(2, 3, 20, 24)
    engine = load_engine(path)
    expected = torch.tensor([
        [-0.374155790, 0.196669817, -0.325356126, -0.205347940, -0.094953135],
        [-0.347800374, 0.222746253, -0.309059948, -0.180984527, -0.098320618],
    ])  # fmt: skip
    torch.testing.assert_close(engine(x), expected, rtol=1e-5, atol=1e-6)
    assert engine.options["exact"] is False and len(engine.rows) == 8


def test_a_loaded_engine_is_saved_again(saved, tmp_path):
    engine, path, x = saved
    load_engine(path).save(tmp_path / "again.safetensors")
    same(engine, load_engine(tmp_path / "again.safetensors"), x)
