"""When kernels are checked, what is kept, and who waits: by a check that runs nothing and says what it is told."""

import json
import threading
import time

import pytest
import torch

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure import files
from resnet_fused.measure.trust import run, verdicts

CPU = torch.device("cpu")
OPS = ("add_relu", "bn_relu")


def add_relu(x, residual, out):
    torch.add(x, residual, out=out).relu_()


def backend(name, **more):
    kernels = {"add_relu": add_relu, "bn_relu": add_relu, "conv_bn_relu": None}
    return dispatch.Backend(name, "cpu", lambda device: None, kernels, proves=True, **more)


COMPILED, COMPILING = backend("compiled"), backend("compiling", compiles=True)
BACKENDS = {b.name: b for b in (COMPILED, COMPILING)}


@pytest.fixture(autouse=True)
def asked(own_cache, monkeypatch):
    """The families that were checked, one list for each check."""
    checks = []

    def check(device, families, *seconds):
        checks.append([(f.backend, f.name) for f in families])
        time.sleep(0.05)
        for family in families:
            yield family, run.Verdict("wrong numbers" if family.name == "bn_relu" else None, 3)

    monkeypatch.setattr(
        run, "verdicts", lambda device, families, *seconds: check(device, list(families)) if families else ()
    )
    monkeypatch.setattr(verdicts.env, "TRUST", "check")
    for name, one in BACKENDS.items():
        monkeypatch.setitem(dispatch.BACKENDS, name, one)
    verdicts.forget()
    yield checks
    verdicts.forget()


def test_the_library_is_checked_once_and_a_compiler_family_by_family(asked, capfd):
    assert dispatch.why_not(COMPILED, "add_relu", CPU) is None
    assert dispatch.why_not(COMPILED, "bn_relu", CPU) == "refused on this device: wrong numbers"
    assert asked == [[("compiled", "add_relu"), ("compiled", "bn_relu")]]
    assert dispatch.why_not(COMPILING, "bn_relu", CPU) is not None
    assert dispatch.why_not(COMPILING, "add_relu", CPU) is None
    assert asked[1:] == [[("compiling", "bn_relu")], [("compiling", "add_relu")]]
    verdicts.forget()  # as another process
    assert not dispatch.able(COMPILED, "bn_relu", CPU) and dispatch.able(COMPILING, "add_relu", CPU)
    assert len(asked) == 3
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 3 and all(line.startswith("resnet_fused: checks ") for line in lines)


def test_what_is_composed_is_not_checked(asked):
    assert dispatch.why_not(COMPILED, "conv_bn_relu", CPU) is None and asked == []


def test_the_hot_path_is_a_lookup(asked, monkeypatch):
    dispatch.why_not(COMPILED, "add_relu", CPU)
    monkeypatch.setattr(verdicts, "_find_out", lambda *detail: pytest.fail("asked again"))
    assert dispatch.why_not(COMPILED, "add_relu", CPU) is None


@pytest.mark.parametrize(
    ("mode", "why"),
    [pytest.param("always", None, id="always"), pytest.param("never", "RESNET_FUSED_TRUST=never", id="never")],
)
def test_other_modes_check_nothing(asked, monkeypatch, mode, why):
    monkeypatch.setattr(verdicts.env, "TRUST", mode)
    assert dispatch.why_not(COMPILED, "bn_relu", CPU) == why and asked == []


def test_an_unknown_mode_is_named(monkeypatch):
    monkeypatch.setattr(verdicts.env, "TRUST", "yes")
    with pytest.raises(ValueError, match="RESNET_FUSED_TRUST must be one of check, always, never, not 'yes'"):
        dispatch.why_not(COMPILED, "bn_relu", CPU)


def test_a_folder_that_cannot_be_written(asked, own_cache):
    """No check would be remembered, so that every process would run it: the kernels are refused, with a reason."""
    own_cache.parent.mkdir(exist_ok=True)
    own_cache.write_text("a file")
    why = dispatch.why_not(COMPILED, "add_relu", CPU)
    assert "cannot be kept in" in why and "RESNET_FUSED_CACHE" in why and asked == []


def test_a_file_that_is_no_record_counts_as_none(asked, own_cache):
    own_cache.mkdir()
    verdicts.Record(CPU).path.write_text("{")
    assert dispatch.why_not(COMPILED, "add_relu", CPU) is None and len(asked) == 1
    kept = json.loads(verdicts.Record(CPU).path.read_text())
    assert kept["families"] == {"compiled add_relu": None, "compiled bn_relu": "wrong numbers"}
    assert {"torch", "library", "device", "driver", "kernels"} <= kept["machine"].keys()


@pytest.mark.parametrize("fact", ["driver", "kernels"])
def test_another_driver_or_other_kernels_are_checked_again(asked, monkeypatch, fact):
    dispatch.why_not(COMPILED, "add_relu", CPU)
    verdicts.forget()
    name = {"driver": "_driver", "kernels": "_text_of_kernels"}[fact]
    monkeypatch.setattr(verdicts, name, lambda *device: "another")
    dispatch.why_not(COMPILED, "add_relu", CPU)
    assert len(asked) == 2


def test_one_process_checks_and_the_others_wait(asked):
    """The lock of the file, held elsewhere as by another process, which has found everything when it lets go."""
    record, answers = verdicts.Record(CPU), []
    with record.locked():
        waiting = threading.Thread(target=lambda: answers.append(dispatch.why_not(COMPILED, "bn_relu", CPU)))
        waiting.start()
        time.sleep(0.1)
        assert answers == []
        found = {f"compiled {op}": "found by another" if op == "bn_relu" else None for op in OPS}
        files.replace(record.path, {"version": verdicts.VERSION, "machine": record.facts, "families": found})
    waiting.join()
    assert answers == ["refused on this device: found by another"] and asked == []


def test_threads_check_once(asked):
    threads = [threading.Thread(target=dispatch.why_not, args=(COMPILED, "add_relu", CPU)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_what_did_not_run_is_not_kept(monkeypatch):
    monkeypatch.setattr(
        run, "verdicts", lambda device, families, *seconds: [(f, run.Verdict("busy", 0, False)) for f in families]
    )
    assert dispatch.why_not(COMPILED, "add_relu", CPU) == "refused on this device: busy"
    assert verdicts.Record(CPU).read() == {}


def test_nothing_is_checked_inside_of_a_trace(asked, monkeypatch):
    def run_op(x):
        with dispatch.backend("compiled"):
            return resnet_fused.ops.add_relu(x, x)

    x = torch.randn(2, 8, 3, 3)
    with resnet_fused.strict(False):
        torch.fx.experimental.proxy_tensor.make_fx(run_op)(x)
        monkeypatch.setattr(verdicts, "_why_not_now", lambda device: "the capture of a CUDA graph")
        with dispatch.record() as rows:
            run_op(x)
    assert asked == [] and rows[0][2].backend != "compiled"
    why = "compiled was not checked on this device yet, which cannot be done inside the capture of a CUDA graph: "
    assert dispatch.why_not(COMPILED, "add_relu", CPU) == why + "`python -m resnet_fused check` checks it"
    monkeypatch.setattr(verdicts, "_why_not_now", lambda device: None)
    assert dispatch.why_not(COMPILED, "add_relu", CPU) is None, "the refusal was not remembered"


def test_a_verdict_that_is_there_counts_inside_of_a_trace(asked, monkeypatch):
    dispatch.why_not(COMPILED, "add_relu", CPU)
    verdicts.forget()
    monkeypatch.setattr(verdicts, "_why_not_now", lambda device: "torch.compile")
    assert dispatch.why_not(COMPILED, "add_relu", CPU) is None and len(asked) == 1


def test_what_is_going_on(monkeypatch):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert verdicts._why_not_now(CPU) is None and verdicts._why_not_now(gpu) == "the capture of a CUDA graph"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert verdicts._why_not_now(CPU) == "torch.compile or torch.export"


def test_configurations_that_are_refused_are_not_measured(monkeypatch):
    configs = [{"tile": "a"}, {"tile": "b", "cluster": True}]
    one = COMPILED._replace(configurations=lambda op, convolution: configs)
    why = {"add_relu": None, "add_relu in clusters": "a hang"}
    monkeypatch.setattr(verdicts, "why_not", lambda backend, family, device: why[family])
    assert dispatch.configurations(one, "add_relu", None, CPU) == configs[:1]


def test_each_kind_of_gpu_is_checked_and_a_second_of_one_kind_is_not(asked, monkeypatch):
    kinds = ["A100", "H100", "H100"]
    monkeypatch.setattr(verdicts.machine, "identity", lambda device: {"device": kinds[device.index]})
    monkeypatch.setattr(verdicts, "_driver", lambda device: "13000")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    one = COMPILED._replace(name="gpu", device="cuda")
    monkeypatch.setitem(dispatch.BACKENDS, "gpu", one)
    for index, checks in ((0, 1), (1, 2), (2, 2), (0, 2)):
        assert dispatch.why_not(one, "add_relu", torch.device("cuda", index)) is None
        assert len(asked) == checks
