"""How a CPU engine is checked: the worst layer by name, choices dropped for accuracy, an eager that is wrong."""

import contextlib
import copy

import broken_torch
import pytest
import torch
from resnets import narrow

import resnet_fused
from resnet_fused.frozen import check
from resnet_fused.frozen.check import Errors
from resnet_fused.frozen.cpu import convolutions, stem
from resnet_fused.frozen.cpu import engine as cpu_engine
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules, with_lively_norms


@pytest.fixture(autouse=True)
def _quick_tuning(monkeypatch):
    monkeypatch.setattr(cpu_engine, "TUNING_SECONDS", 0.0)


onednn_has_bfloat16 = pytest.mark.skipif(not convolutions._has_bfloat16(), reason="oneDNN has no bfloat16 on this CPU")


def net():
    return with_lively_norms(narrow()).eval()


class Wrong(convolutions.Torch):
    """A convolution whose shift is 4 too large, in values of about 1."""

    name = "wrong"

    def __init__(self, step, dtype):
        super().__init__(step, dtype)
        self.bias = self.bias + 4


def with_a_wrong_layer(monkeypatch, name):
    candidates = cpu_engine.candidates
    monkeypatch.setattr(
        cpu_engine, "candidates", lambda step, *args: [Wrong] if step.name == name else candidates(step, *args)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_wrong_layer_is_refused_by_name(monkeypatch, dtype):
    with_a_wrong_layer(monkeypatch, "layer2.0.conv1")
    with pytest.raises(
        ValueError, match=r"of its error budget in torch\.\w+; the worst layer is layer2.0.conv1 \(wrong\) with "
    ):
        resnet_fused.freeze(net(), torch.randn(2, 3, 40, 40), dtype=dtype)


def test_an_engine_past_its_budget_says_so_with_the_worst_layer(monkeypatch):
    monkeypatch.setattr(cpu_engine.check, "errors", lambda *_: Errors(1.5, False))
    engine = resnet_fused.freeze(net(), torch.randn(1, 3, 40, 40), exact=True)
    (note,) = engine.notes
    assert note.startswith("the logits use 1.50 of their error budget; the worst layer is ")
    assert note in str(resnet_fused.explain(engine, None))
    monkeypatch.undo()
    assert resnet_fused.freeze(net(), torch.randn(1, 3, 40, 40), exact=True).notes == []


@pytest.mark.parametrize(
    ("dtype", "errors", "far"),
    [
        pytest.param(torch.float32, Errors(1.3, False), "1.3 times their error budget away", id="budget"),
        pytest.param(
            torch.bfloat16, Errors(0.9, True), "further off than eager's", id="eager", marks=onednn_has_bfloat16
        ),
    ],
)
def test_a_dropped_choice_says_why(monkeypatch, dtype, errors, far):
    class F4(convolutions.OneDNN):
        """Stands in for Winograd, which not every CPU runs in bfloat16."""

        name = "stand-in"

    def candidates(step, dtype, exact):
        return [stem.ThenPool(convolutions.OneDNN)] if step.pool else [F4, convolutions.OneDNN]

    monkeypatch.setattr(cpu_engine, "F4", (F4,))
    monkeypatch.setattr(cpu_engine, "candidates", candidates)
    monkeypatch.setattr(cpu_engine.CpuEngine, "_measured", lambda self, key, able, measure: measure())
    monkeypatch.setattr(cpu_engine.measure, "layer", lambda steps, able, *_: {k: float(i) for i, k in enumerate(able)})
    left = iter([errors, Errors(0.5, False)])
    monkeypatch.setattr(cpu_engine.check, "errors", lambda *_: next(left))
    engine = resnet_fused.freeze(net(), torch.randn(1, 3, 40, 40), dtype=dtype)
    why = f"F(4x4) dropped: the logits were {far}; "
    dropped = {row["name"] for row in engine.rows if row["reason"].startswith(why)}
    assert dropped == {f"layer{name}" for name in ("3.0.conv2", "4.0.downsample", "4.0.conv1", "4.0.conv2")}
    assert {row["name"] for row in engine.rows if row["backend"] == "onednn"} == dropped, "the deep layers first"
    assert why in str(resnet_fused.explain(engine, None))


@pytest.fixture(params=[1e6, float("inf")], ids=["finite", "infinite"])
def garbage(request):
    """torch's bfloat16 convolutions are wrong, as on CPUs with a matrix unit, until it is closed; oneDNN's own operators are
    not."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            broken_torch.convolutions(lambda y, _: y * request.param if y.dtype == torch.bfloat16 else y)
        )
        yield stack


@onednn_has_bfloat16
def test_a_right_engine_is_not_refused_where_eager_is_wrong(garbage):
    model, x = net(), torch.randn(2, 3, 40, 40)
    engine = resnet_fused.freeze(model, x, dtype=torch.bfloat16, exact=True)
    (note,) = engine.notes
    assert note.startswith("torch's bfloat16 convolutions are wrong here: eager's logits are ")
    assert note in str(resnet_fused.explain(engine, None))
    with torch.no_grad():
        wrong = by_modules(model).bfloat16()(x.bfloat16())
        assert not (wrong.double() - model(x)).norm() < 1e3
        garbage.close()
        oracle, eager = copy.deepcopy(model).double()(x.double()), by_modules(model).bfloat16()(x.bfloat16())
    assert_within_budget(engine(x), eager, oracle, "frozen beside an eager that is right", channel_dim=None)


@onednn_has_bfloat16
def test_a_wrong_engine_is_refused_where_eager_is_wrong(garbage, monkeypatch):
    with_a_wrong_layer(monkeypatch, "layer2.0.conv1")
    monkeypatch.setattr(Wrong, "__call__", convolutions.OneDNN.__call__)
    monkeypatch.setattr(
        Wrong, "__init__", lambda self, *args: (convolutions.OneDNN.__init__(self, *args), self.bias.add_(4))[0]
    )
    with pytest.raises(ValueError, match=r"the worst layer is layer2.0.conv1 \(wrong\) with "):
        resnet_fused.freeze(net(), torch.randn(2, 3, 40, 40), dtype=torch.bfloat16, exact=True)


@torch.no_grad()
def test_the_stand_in_for_eager_errs_as_eager_does():
    model, x = net(), torch.randn(4, 3, 40, 40).bfloat16()
    eager, oracle, why = check.eager_and_oracle(model, x, torch.bfloat16)
    assert why is None
    errors = [(y.double() - oracle[0]).norm() for (y,) in (eager, check.rounded(model, x, torch.bfloat16))]
    assert 0.5 < errors[1] / errors[0] < 2


def test_what_is_absurd():
    oracle = torch.tensor([1.0, 2.0, float("nan")], dtype=torch.float64)
    assert not check.absurd([torch.tensor([1.0, 2.5, float("nan")])], [oracle])
    assert check.absurd([torch.tensor([1.0, 5.0, float("nan")])], [oracle])
    for value in (float("nan"), float("inf")):
        assert check.absurd([torch.tensor([1.0, value, float("nan")])], [oracle])


@pytest.mark.parametrize("library", [True, False], ids=["library", "torch alone"])
def test_bfloat16_where_onednn_has_none(monkeypatch, library):
    """As on CPUs without AVX-512."""
    monkeypatch.setattr(convolutions, "_has_bfloat16", lambda: False)
    if not library:
        for kind in (convolutions.Direct, stem.Stem, *convolutions.WINOGRAD):
            monkeypatch.setattr(kind, "why_not", staticmethod(lambda step, dtype: "absent"))
    model, x = net(), torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        oracle, eager = copy.deepcopy(model).double()(x.double()), by_modules(model).bfloat16()(x.bfloat16())
    engine = resnet_fused.freeze(model, x, dtype=torch.bfloat16)
    assert_within_budget(engine(x), eager, oracle, "frozen", channel_dim=None)
    assert not any("onednn" in row["backend"] for row in engine.rows)
