"""The check of kernels where they run: whatever a kernel does, it is refused by name, the rest is used, and numbers are
eager's."""

import re

import broken_kernels
import pytest
import torch
from broken_kernels import BACKEND, BROKEN, RIGHT
from emulator import build
from resnets import narrow
from training_cases import X

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules, in_float64, with_lively_norms
from resnet_fused.measure.trust import run, verdicts
from resnet_fused.measure.trust.families import Family

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache folder that all tests of this file share: the check runs once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def broken(folder, monkeypatch):
    """A machine whose "GPU" has broken kernels."""
    monkeypatch.setattr(verdicts.env, "TRUST", "check")
    monkeypatch.setattr(verdicts.env, "CACHE", folder)
    monkeypatch.setattr(run, "SECONDS", 10.0)
    monkeypatch.setitem(dispatch.BACKENDS, BACKEND.name, BACKEND)
    verdicts.forget()
    yield
    verdicts.forget()


@pytest.mark.parametrize("op", [*BROKEN, *RIGHT])
def test_a_broken_family_is_refused_by_name_and_the_rest_is_used(op, capfd):
    why = dispatch.why_not(BACKEND, op, CPU)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("resnet_fused: ")]
    if op in BROKEN:
        assert re.match(f"refused on this device: {BROKEN[op][1]}", why) and "\n" not in why
    else:
        assert why is None
    for line in said:  # of the first test that runs
        assert re.match(r"resnet_fused: checks 9 kinds of kernels on .* 5 refused \(.*\), \d+\.\d s$", line)
    verdicts.forget()
    assert dispatch.why_not(BACKEND, op, CPU) == why and "checks" not in capfd.readouterr().err, "kept in the file"


@torch.no_grad()
def test_a_network_in_evaluation_still_has_eagers_numbers():
    model, x = with_lively_norms(narrow()).eval(), torch.randn(X).contiguous(memory_format=torch.channels_last)
    with resnet_fused.strict(False), dispatch.backend(BACKEND.name), dispatch.record() as rows:
        ours = model(x)
    check(rows, {"conv_bn_relu", "bn_relu"})
    assert_within_budget(ours, by_modules(model)(x), in_float64(model)(x.double()), "logits", channel_dim=None)
    reasons = {choice.reason for op, _, choice in rows if op == "conv_bn_relu"}
    assert reasons == {"refused on this device: RuntimeError: CUDA error: unspecified launch failure"}


def test_a_network_in_training_still_has_eagers_numbers():
    model, x = with_lively_norms(narrow()).train(), torch.randn(X).contiguous(memory_format=torch.channels_last)
    with resnet_fused.strict(False), dispatch.backend(BACKEND.name), dispatch.record() as rows:
        ours = model(x)
        ours.square().sum().backward()
    check(rows, set(BROKEN) - {"conv_bn_relu"})
    used = {op for op, _, choice in rows if choice.backend == BACKEND.name}
    assert {"bn_add_bn_relu", "bn_relu_backward_apply"} <= used <= set(RIGHT), "what is right runs"
    assert_within_budget(ours, by_modules(model)(x), in_float64(model)(x.double()), "logits", channel_dim=None)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def check(rows, refused):
    """Every one of the refused ops ran, elsewhere."""
    where = {op: {choice.backend for other, _, choice in rows if other == op} for op in refused}
    assert all(found and BACKEND.name not in found for found in where.values()), where


def test_the_list_of_backends_says_what_is_refused():
    dispatch.why_not(BACKEND, "bn_relu", CPU)
    state = resnet_fused.backends()[BACKEND.name]
    assert state.startswith("available; ") and "bn_stats is refused on cpu: the process that checked it died" in state


def test_what_a_module_does_not_have_is_a_reason():
    found = dict(run.verdicts(CPU, [family := Family("absent", "add_relu", broken_kernels.__name__)]))
    assert found[family].why == "LookupError: broken_kernels has no backend 'absent'"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        pytest.param("/nowhere/python", "no process can be started to check it", id="none"),
        pytest.param("/bin/false", "the process that checks it failed: exit status 1", id="ends"),
    ],
)
def test_without_a_process_there_is_no_trust(monkeypatch, tmp_path, program, why):
    """And nothing is kept: what stopped the process says nothing of the kernels."""
    monkeypatch.setattr(verdicts.env, "CACHE", tmp_path)
    monkeypatch.setattr(run.sys, "executable", program)
    assert why in dispatch.why_not(BACKEND, "add_relu", CPU)
    assert verdicts.Record(CPU).read() == {}


def test_a_begin_is_not_waited_for_for_ever(monkeypatch, tmp_path):
    (program := tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(program))
    families = [Family("broken", op, broken_kernels.__name__) for op in RIGHT]
    found = dict(run.verdicts(CPU, families, 1.0, 0.2))
    assert list(found) == families
    assert {(verdict.why, verdict.ran) for verdict in found.values()} == {("no begin of the check within 0.2 s", False)}
