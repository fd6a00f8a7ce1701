"""The benchmarks measure what they say: protocol, gate, accounting, records, report; every command in a miniature."""

import json

import pytest
import torch
from resnets import narrow

from benchmarks import kernels, plots, report, resnet
from benchmarks.gpu import fp8 as benchmark_fp8
from benchmarks.gpu import parts
from benchmarks.peers import peers
from benchmarks.protocol import candidates, cases, ceilings, gate, harness, options, record
from resnet_fused import BasicBlock, Bottleneck, dispatch
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.measure import timing

pytestmark = pytest.mark.usefixtures("own_cache")


def collected(op, direction, batch=2, dtype=torch.float32):
    model = narrow().to(memory_format=torch.channels_last)
    return cases.collect(model, batch, 40, dtype, (op,), (direction,))


def main(command, *arguments):
    return options.run(command, [str(a) for a in arguments])


def test_candidates_take_turns_over_their_sets():
    order = []
    one = harness.rotating([lambda i=i: order.append(i) for i in range(3)])
    for _ in range(7):
        one.run()
    assert order == [0, 1, 2, 0, 1, 2, 0] and one.calls == 1
    timings = timing.compare({"a": timing.Candidate(lambda: order.append("a"), calls=4)}, seconds=0.0)
    assert timings["a"].median < timing.SAMPLE


def test_sets_pass_the_cache(monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 1000)
    assert timing.sets_needed(10_000, "cpu") == 1
    assert timing.sets_needed(500, "cpu") == 5 and timing.sets_needed(1, "cpu") == timing.MOST_SETS
    assert timing.sets_needed(timing.MOST_BYTES["cpu"], "cpu") == 1


def test_percentiles_and_single_calls():
    called = []
    samples = harness.single_calls(lambda: called.append(1), "cpu", 20)
    assert len(samples) == 20 and len(called) == 21 and min(samples) > 0
    assert harness.percentile(list(range(101)), 0.99) == 99 and harness.percentile([5], 0.99) == 5


def test_neighbours_are_busy_and_end(monkeypatch):
    started, make = [], harness.subprocess.Popen
    monkeypatch.setattr(harness.subprocess, "Popen", lambda *args: started.append(make(*args)) or started[-1])
    with pytest.raises(KeyError), harness.beside(2):
        assert len(started) == 2 and all(process.poll() is None for process in started)
        raise KeyError
    assert all(process.poll() is not None for process in started)


def test_memory_of_a_call_is_seen():
    """What an allocator kept from earlier calls is not seen; it cannot have kept eight times 64 MB."""
    held = []
    grown = [harness.peak_bytes(lambda: held.append(torch.ones(64 << 20, dtype=torch.uint8)), "cpu") for _ in range(8)]
    assert None in grown or 48 << 20 < max(grown) < 96 << 20


def test_flops_and_bytes_are_those_of_the_tensors():
    case = next(c for c in collected("conv_bn_relu", "forward") if c.call["residual"] is not None)
    a = case.arguments("cpu", 0)
    n, k, p, q = case.out_shape
    assert case.flops == 2 * n * k * p * q * 64 * 9 and (n, k) == (2, 64)
    parameters = 4 * a["mean"].nbytes
    assert case.nbytes(a) == a["x"].nbytes + a["weight"].nbytes + parameters + 2 * a["residual"].nbytes
    backward = next(c for c in collected("add_relu", "backward"))
    b = backward.arguments("cpu", 0)
    assert backward.nbytes(b) == 4 * b["x"].nbytes, "gradient and output in, two gradients out"


KINDS = [(op, d) for op in cases.OPS for d in cases.DIRECTIONS if d == "forward" or op not in cases.VALUES_ONLY]


@pytest.mark.parametrize(("op", "direction"), KINDS)
def test_the_gate_passes_ours_and_sees_a_small_error(op, direction):
    case = collected(op, direction)[0]
    a = case.arguments("cpu", 0)

    ours = case.reference if op == "pool_linear" else case.public  # a kernel of the static engine, no public op

    def off(*args, **kwargs):
        out = ours(*args, **kwargs)
        return (out[0], out[1] * 1.001) if isinstance(out, tuple) else out * 1.001

    grad = torch.randn(case.out_shape)
    for function, right in ((ours, True), (off, False)):
        if direction == "forward":
            share = gate.Forward(case, a).share(case.run(function, gate.copies(a)))
        else:
            share = gate.Backward(case, a, grad).share(*gate.gradients(case, function, a, grad))
        assert (share <= 1) == right, share


def test_a_wrong_kernel_is_reported_and_not_timed(monkeypatch):
    case = collected("add_relu", "forward")[0]
    native = dispatch.BACKENDS["native"]

    def copy(x, residual, out):
        out.copy_(x)

    monkeypatch.setitem(dispatch.BACKENDS, "native", native._replace(kernels={"add_relu": copy}))
    rows = {
        row["candidate"]: row for row in kernels.run_case(case, "cpu", ("eager",), 0.0, {"flops": 1e9, "bytes": 1e9})
    }
    assert "not timed" in rows["native"]["wrong"] and "median" not in rows["native"]
    assert rows["eager"]["vs_eager"] == pytest.approx(1.0)
    assert "WRONG" in kernels.text(list(rows.values()))


@pytest.mark.parametrize("op", ["conv_bn_relu_pair", "pool_linear"])
def test_kernels_of_the_static_engine_pass_the_gate(op, monkeypatch):
    """On the emulator, beside the peers: the shared launch of a pair, the head."""
    from emulator import as_backend

    if (why := as_backend.measured(monkeypatch)) is not None:
        pytest.skip(why)
    case = collected(op, "forward", batch=1, dtype=torch.float16)[0]
    a = case.arguments("cpu", 0)
    name = "emulator, one launch" if op == "pool_linear" else "emulator"
    kind, make = candidates.forward(case, "cpu", ("eager",))[name]
    itself, out = candidates.runs_itself(name, make(a))
    assert kind == "ours" and itself and gate.Forward(case, a).share(out) <= 1


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck], ids=["basic", "bottleneck"])
def test_the_cases_of_pairs_and_head_are_those_of_the_model(block):
    model = narrow(block=block).to(memory_format=torch.channels_last)
    found = cases.collect(model, 2, 40, torch.float32, ("conv_bn_relu_pair", "pool_linear"), ("forward",))
    down = [m for m in model.modules() if getattr(m, "downsample", None) is not None]
    assert len(down) == 3 + (block is Bottleneck) and len({case.label for case in found}) == len(found) == len(down) + 1
    for case, module in zip(found, down, strict=False):
        first, second = (tuple(case.call[name].shape) for name in ("weight", "weight2"))
        assert (first, second) == (tuple(module.conv1.weight.shape), tuple(module.downsample[0].weight.shape))
    assert found[-1].out_shape == (2, model.fc.out_features) and found[-1].flops == 2 * 2 * model.fc.weight.numel()


def test_the_ceiling_is_the_slower_of_computing_and_moving():
    found = ceilings.measure("cpu", torch.float32, 0.0, small=True)
    assert found["flops"] > 1e8 and found["bytes"] > 1e7
    assert ceilings.share({"flops": 100, "bytes": 10}, 200, 10, 4.0) == 0.5
    assert ceilings.share({"flops": 100, "bytes": 10}, 200, 50, 10.0) == 0.5


def test_kernels_in_a_miniature(tmp_path, capsys):
    line = ("--device", "cpu", "--model", "resnet18", "--size", 32, "--batch", 2, "--first", 1, "--seconds", 0)
    assert main(kernels.main, *line, "--output", tmp_path) == 0
    out = capsys.readouterr().out
    rows = [row for row in record.read(tmp_path) if "candidate" in row]
    assert {row["op"] for row in rows} == set(cases.OPS) and "onednn fused" in out
    assert all(row["budget"] <= 1 and row["p20"] <= row["median"] <= row["p80"] for row in rows)
    assert {"device", "torch", "triton", "threads", "tree", "commit", "dirty"} <= rows[0]["environment"].keys()


def test_models_in_a_miniature_with_a_missing_peer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    line = ("--device", "cpu", "--model", "resnet18", "--size", 32, "--batch", 1, "--seconds", 0, "--output", tmp_path)
    assert main(resnet.main, *line, "--peers", "eager", "live", "frozen", "onnxruntime") == 0
    rows = {row["candidate"]: row for row in record.read(tmp_path)}
    assert rows["onnxruntime"]["missing"].startswith("the package onnxruntime is not installed")
    assert all(rows[n]["call_p99"] >= rows[n]["call_p50"] > 0 and rows[n]["budget"] <= 1 for n in ("live", "frozen"))
    assert "missing at batch 1: onnxruntime" in capsys.readouterr().out


def test_training_in_a_miniature(tmp_path):
    line = ("--device", "cpu", "--model", "resnet18", "--size", 32, "--batch", 2, "--seconds", 0, "--output", tmp_path)
    assert main(resnet.main, *line, "--mode", "train", "--peers", "eager", "live") == 0
    assert {row["candidate"] for row in record.read(tmp_path)} == {"eager", "live"}


@pytest.mark.parametrize(("command", "line", "message"), [
    (resnet.main, "--peers nobody", "'nobody' is none of eager"),
    (resnet.main, "--batch 0", "must be at least 1, not 0"),
    (kernels.main, "--op winograd", "invalid choice: 'winograd'"),
    (kernels.main, "--size 32 --batch 1 --model resnet18 --device cpu", "more than one value per channel"),
    (kernels.main, "--size 8", "must be at least 32, not 8"),
    (report.main, "--results /no/such/folder", "no such folder: /no/such/folder"),
])  # fmt: skip
def test_wrong_arguments(capsys, command, line, message):
    assert main(command, *line.split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def row(run, median, commit="aaa111", spread=0.01, **more):
    spread_of = {"p20": median * (1 - spread), "p80": median * (1 + spread)}
    environment = {"device": "D, 2 threads", "torch": "2", "commit": commit, "tree": "f", "dirty": False}
    head = {
        "suite": "resnet",
        "run": run,
        "environment": environment,
        "mode": "infer",
        "model": "resnet34",
        "size": 224,
    }
    return head | {"batch": 1, "dtype": "float32", "candidate": "live", "kind": "ours", "median": median, **spread_of,
                   "images_per_second": 1 / median, **more}  # fmt: skip


def write(folder, *rows):
    (folder / "resnet-cpu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"cut": ')


def test_report_shows_the_newest_and_lists_what_became_slower(tmp_path, capsys):
    old = [row("2026-01-01", 0.010), row("2026-01-01", 0.020, candidate="eager", kind="peer")]
    new = [
        row("2026-01-02", 0.011, "bbb222", error=2.51e-7),
        row("2026-01-02", 0.0205, "bbb222", candidate="eager", kind="peer"),
    ]
    write(tmp_path, *old, *new)
    assert main(report.main, "--results", tmp_path, "--against", "aaa") == 0
    out = capsys.readouterr().out
    assert "| 1 float32 | 11 | 20.5 |\n| 1 float32, error | 3e-07 | - |" in out and "bbb222" in out
    assert "live 0" not in out and "| +10.0% |" in out and out.count("%") == 1, "2.5 % of eager are within the spread"
    assert main(report.main, "--results", tmp_path, "--against", "ccc") == 2
    write(tmp_path, *old, row("2026-01-02", 0.011, "bbb222", spread=0.09))
    main(report.main, "--results", tmp_path, "--against", "aaa111")
    assert "Nothing is more than 3% slower" in capsys.readouterr().out, "10 % within a spread of 9 % are no regression"


def test_plots_are_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    kernel = row("2026-01-01", 1e-3, suite="kernels", op="conv_bn_relu", direction="forward", case="c", flops=1e9,
                 bytes=1e6, tflops=1.0, ceiling=0.5)  # fmt: skip
    ceiling = row("2026-01-01", 1.0, case="ceilings", flops=2e12, bytes=1e10)
    del ceiling["candidate"]
    write(tmp_path, row("2026-01-01", 0.01), row("2026-01-01", 0.02, candidate="eager", kind="peer"), kernel, ceiling)
    assert main(report.main, "--results", tmp_path, "--plots", tmp_path / "plots") == 0
    names = {p.name.partition("-")[0] + p.suffix for p in (tmp_path / "plots").iterdir()}
    assert names == {"speedup.png", "speedup.svg", "roofline.png", "roofline.svg"}
    monkeypatch.setattr(report, "PLOTS", tmp_path / "default")
    assert main(report.main, "--results", tmp_path, "--plots") == 0 and len(list((tmp_path / "default").iterdir())) == 4


@pytest.mark.parametrize("name", ["AMD EPYC (family 25, model 17)", "Intel(R) Xeon(R) Processor", "NVIDIA H200"])
def test_plots_name_the_device(name):
    assert plots._short(f"{name}, 2 threads, AVX512") == plots._short(name) == name


def test_plots_compare_with_what_every_batch_has():
    measured = [("eager", 1), ("eager, channels_last", 1), ("eager, channels_last", 8)]
    rows = [{"candidate": name, "batch": batch} for name, batch in measured]
    assert plots._base(rows, [1, 8]) == "eager, channels_last" and plots._base(rows, [1]) == "eager"
    assert plots._base(rows, [32]) is None


def test_models_that_make_gpu_asks_for_exist():
    x = torch.empty(1, 3, 32, 32)
    on_gpu = peers.inference(None, type("X", (), {"device": torch.device("cuda"), "dtype": x.dtype})())
    assert set(parts.PLAIN) | set(parts.COMPILED) <= set(on_gpu)
    assert {"live", "torch.compile", *parts.TRAINING} <= set(peers.training(None, x))


def test_backends_that_compete():
    assert candidates.backends("cpu", "bn_relu") == ["native"]
    assert set(candidates.backends("cpu", "conv_bn_relu")) == {"native", "torch"}


def test_fp8_beside_bfloat16(capsys, tmp_path, monkeypatch):
    """On a CPU its errors alone, by the formula; where there is neither a GPU nor the interpreter, one line."""
    pytest.importorskip("triton")
    monkeypatch.setattr(fp8.env, "TRITON_INTERPRET", True)
    arguments = ("--device", "cpu", "--model", "resnet20", "--batch", 2, "--output", tmp_path)
    assert main(benchmark_fp8.main, *arguments) == 0
    (row,) = [row for row in record.read(tmp_path) if row.get("dtype") == "fp8"]
    assert row["model"] == "resnet20" and row["error_bfloat16"] < row["error"] < 0.2 and "median" not in row
    assert "largest logit kept" in capsys.readouterr().out
    monkeypatch.setattr(fp8.env, "TRITON_INTERPRET", False)
    assert main(benchmark_fp8.main, *arguments) == 2
    assert "fp8 needs a CUDA device of compute capability 8.9 or later" in capsys.readouterr().err
