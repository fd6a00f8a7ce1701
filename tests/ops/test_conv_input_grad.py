"""Which backend computes the gradient of a convolution's input in training: torch, unless one was asked for or measured."""

import pytest
import torch
from cases import activation
from emulator import as_backend, build
from on_gpu import OnGpu
from training_cases import block, check

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.commands.tune import calls, training_calls, tune
from resnet_fused.kernels.hopper.plane import cuda as cuda_plane
from resnet_fused.kernels.hopper.strip import cuda as cuda_strip
from resnet_fused.kernels.shapes import convolution_of
from resnet_fused.measure import remembered
from resnet_fused.measure.accuracy import assert_within_budget, exact
from resnet_fused.ops.training import Unit, unit

LAST = torch.channels_last
OP = "conv_input_grad"
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)


def weight_of(k, c, dtype=torch.float16, size=3):
    return torch.empty(k, c, size, size, dtype=dtype, device="meta")


def choose(weight, geometry=GEOMETRY, grad=None):
    """The choice for a gradient [2, 64, 8, 8] of the output, and what was noted."""
    with dispatch.record() as rows:
        grad = OnGpu() if grad is None else grad
        convolution = convolution_of(grad, weight.transpose(0, 1), *geometry)
        choice = dispatch.choose_conv_input_grad(grad, weight, convolution)
    assert [op for op, *_ in rows] in ([], [OP])
    return choice, bool(rows)


@pytest.mark.usefixtures("gpu")
def test_torchs_by_default_and_no_word_about_it():
    choice, noted = choose(weight_of(64, 64))
    assert choice.backend == "torch" and not noted
    for name in ("cuda", "triton"):  # which have no kernel for it
        with dispatch.backend(name):
            choice, noted = choose(weight_of(64, 64))
            assert choice.backend == "torch" and not noted


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "c", "geometry", "why"),
    [
        pytest.param("cuda_plane", 128, ((2, 2), *GEOMETRY[1:]), None, id="plane"),
        pytest.param("cuda_plane", 64, GEOMETRY, "output channels from 128 on, not 64", id="plane-few"),
        pytest.param("cuda_plane", 136, GEOMETRY, "output channels in multiples of 64, not 136", id="plane-c"),
        pytest.param("cuda_plane", 128, (*GEOMETRY[:3], 2), "one group, not 2", id="plane-groups"),
        pytest.param("cuda_strip", 64, GEOMETRY, None, id="strip"),
        pytest.param("cuda_strip", 64, ((2, 2), *GEOMETRY[1:]), "stride 1, not 2", id="strip-stride"),
    ],
)
def test_who_was_asked_takes_it_or_says_why_not(name, c, geometry, why):
    with dispatch.backend(name):
        choice, noted = choose(weight_of(64, c), geometry)
    assert noted and choice.backend == ("torch" if why else name) and (why or "was asked for") in choice.reason


@pytest.mark.usefixtures("gpu")
def test_other_tensors_are_torchs():
    with dispatch.backend("cuda_strip"):
        assert choose(weight_of(64, 64, torch.float32))[0].reason == "dtypes torch.float16 and torch.float32"
        nchw = OnGpu(memory_format=torch.contiguous_format)
        assert choose(weight_of(64, 64), grad=nchw)[0] == dispatch.Choice("torch", "contiguous NCHW")


def test_what_was_measured_runs(gpu, monkeypatch):
    table = remembered.table(None)
    monkeypatch.setattr(remembered, "table", lambda device: table)
    with dispatch.record_keys() as keys:
        choose(weight_of(64, 128))
    for name, config in (("cuda_plane", {"places": 2}), ("cuda_strip", None), ("torch", None)):
        table.entries = {keys[0]: remembered.entry({name: 1e-5, "eager": 2e-5}, {name: config} if config else {})}
        choice, noted = choose(weight_of(64, 192))  # another weight
        assert choice.backend == "torch" and not noted
        choice, noted = choose(weight_of(64, 128))
        # The kernel of cuda_strip refuses 128 channels, whatever a table says.
        assert choice.backend == ("torch" if name == "cuda_strip" else name) and choice.config == config and noted


@pytest.mark.parametrize(
    ("c", "found", "absent"),
    [(64, {"torch", "cuda_strip"}, "cuda_plane"), (128, {"torch", "cuda_plane", "cuda_plane places=2"}, "cuda_strip")],
)
def test_it_is_measured_on_a_gpu(gpu, c, found, absent):
    values = {
        "grad": calls.Spec((64, 64, 56, 56), torch.bfloat16, LAST),
        "weight": calls.Spec((64, c, 3, 3), torch.bfloat16, LAST),
        "size": (56, 56), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip
    call = calls.Call(OP, tuple(values.items()))
    assert calls.out_shape(call) == (64, c, 56, 56)
    options = tune.options(call, torch.device("cuda"))
    assert found <= set(options) and not {"cuda", "triton", "eager", absent} & set(options)


def test_a_measured_call_is_the_gradient():
    x, weight = torch.randn(2, 8, 7, 6), torch.randn(8, 8, 3, 3)
    grad = torch.randn(2, 8, 4, 3).contiguous(memory_format=LAST)
    values = (grad, weight, (7, 6), (2, 2), (1, 1), (1, 1), 1)
    ours = calls.Call(OP, ()).function()(*values)
    torch.testing.assert_close(ours, torch.nn.grad.conv2d_input(x.shape, weight, grad, 2, 1))


def test_calls_of_a_model_on_a_gpu(monkeypatch):
    """All convolutions but the stem's, whose image wants no gradient. Only the names of devices are looked at."""
    recorder = training_calls.Recorder()
    one = Unit(torch.empty(8, 8, 3, 3, device="meta"), None, None, None, None, [1, 1], [1, 1], [1, 1], 1, 1e-5)

    class OnCuda:
        shape, dtype, device = torch.Size((1, 8, 4, 4)), torch.float16, torch.device("cuda")

    monkeypatch.setattr(training_calls, "empty_output", lambda x, unit: x)
    recorder._convolution(OnCuda, one)
    assert [op for op, _ in recorder.calls] == ["conv_stats", OP]
    assert dict(recorder.calls[1][1])["size"] == (4, 4)
    recorder.inside = False
    recorder._convolution(OnCuda, one)
    assert [op for op, _ in recorder.calls][2:] == ["conv_stats"]


@pytest.fixture(params=[("cuda_plane", cuda_plane), ("cuda_strip", cuda_strip)], ids=["cuda_plane", "cuda_strip"])
def compiled(request, device, monkeypatch):
    """The name of a backend that can run here: without a GPU it, and the one that runs what it refuses, are the emulator's."""
    name, module = request.param
    if device == "cuda":
        if (why := dispatch.why_not_here(dispatch.BACKENDS[name])) is not None:
            pytest.skip(why)
    else:
        as_backend.register()
        emulator = dispatch.BACKENDS["emulator"]
        if (why := dispatch.why_not_here(emulator)) is not None:
            pytest.skip(why)
        here = {"device": "cpu", "why_not": lambda device: None, "kernels": module.kernels(build.load)}
        monkeypatch.setitem(dispatch.BACKENDS, name, module.BACKEND._replace(**here))
        monkeypatch.setitem(dispatch.BACKENDS, "cuda", emulator)
    return name


@pytest.mark.parametrize(("kind", "stride"), [("identity", 1), ("projection", 2)])
def test_a_block_trains_with_its_gradients(compiled, kind, stride, device):
    channels = 128 if compiled == "cuda_plane" else 64
    model = block(kind, channels, stride).to(device, torch.float16, memory_format=LAST)
    x = activation((8, channels, 4, 2), torch.float16, device=device)
    grad = activation((8, channels * stride, 4 // stride, 2 // stride), torch.float16, device=device)
    with resnet_fused.backend(compiled), dispatch.record() as rows:
        check(model, x, grad)
    used = [choice.backend for op, _, choice in rows if op == OP]
    # The strip kernel refuses the convolutions of a projection block.
    name = "torch" if compiled == "cuda_strip" and kind == "projection" else compiled
    assert used == [name] * (2 if kind == "identity" else 3)


def test_the_compiled_kernels_where_they_were_asked_for(compiled, device):
    c, stride = (128, 2) if compiled == "cuda_plane" else (64, 1)
    x = activation((2, c, 5, 4), torch.float16, device=device)
    weight = activation((64, c, 3, 3), torch.float16, device=device, mean=0.0, std=1 / 24)
    grad = activation((2, 64, -(-5 // stride), 4 // stride), torch.float16, device=device)
    one = Unit(weight, None, None, None, None, [stride] * 2, [1, 1], [1, 1], 1, 1e-5)
    with dispatch.record() as rows, dispatch.backend(compiled):
        ours, grad_weight = unit.conv_backward(grad, x, one, True, True)
    assert [(op, choice.backend) for op, _, choice in rows] == [(OP, compiled)] and grad_weight is not None
    eager, oracle = (
        torch.nn.grad.conv2d_input(x.shape, convert(weight), convert(grad), stride, 1)
        for convert in (lambda t: t, exact)
    )
    assert_within_budget(ours, eager, oracle, "the gradient of the input")


def test_only_the_gradient_that_is_wanted(monkeypatch):
    """Torch is asked for the weight's alone, or not at all."""
    x, grad = (torch.randn(1, 64, 3, 3).half().contiguous(memory_format=LAST) for _ in range(2))
    one = Unit(torch.randn(64, 64, 3, 3).half() / 24, None, None, None, None, [1, 1], [1, 1], [1, 1], 1, 1e-5)
    monkeypatch.setattr(dispatch, "choose_conv_input_grad", lambda *detail: dispatch.Choice("ours", "here"))
    monkeypatch.setattr(
        dispatch, "kernel",
        lambda choice, op: lambda grad, weight, out, convolution: out.fill_(3),
    )  # fmt: skip
    for want_x, want_weight in ((True, True), (True, False), (False, True)):
        got = unit.conv_backward(grad, x, one, want_x, want_weight)
        assert [g is not None for g in got] == [want_x, want_weight]
        if want_x:
            assert (got[0] == 3).all()
