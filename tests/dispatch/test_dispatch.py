"""What the dispatcher chooses for tensors on a GPU, asked without one: tensors that only say that they are there."""

import pytest
import torch
from on_gpu import SHAPE, OnGpu

from resnet_fused import dispatch
from resnet_fused.commands.tune import calls, tune
from resnet_fused.frozen.gpu import layers
from resnet_fused.frozen.network import ConvBn
from resnet_fused.kernels import cuda
from resnet_fused.kernels.epilogue import Epilogue, Norm
from resnet_fused.kernels.shapes import Convolution
from resnet_fused.measure import remembered

PASSES = (
    "add_relu", "add_relu_backward", "bn_stats", "bn_relu", "bn_relu_backward_reduce", "bn_relu_backward_apply",
    "bn_add_bn_relu",
)  # fmt: skip
CONVOLUTIONS = ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool", "conv_stats")


def convolution(k=128, stride=1, dtype=torch.float16):
    """A 3x3 convolution of SHAPE to k channels."""
    return Convolution(SHAPE, (k, 64, 3, 3), dtype, (stride, stride), (1, 1), (1, 1), 1)


DETAIL, STRIP = convolution(), convolution(64)


def chosen(op, x):
    return dispatch.pick(op, x, convolution=DETAIL._replace(dtype=x.dtype) if op in CONVOLUTIONS else None)[0]


@pytest.mark.parametrize("op", PASSES + CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_compiled_kernels_by_default_and_triton_without_them(gpu, op, dtype):
    x = OnGpu(dtype)
    assert chosen(op, x).backend == "cuda" and "not measured" in chosen(op, x).reason
    gpu["cuda"] = "no nvcc"
    assert chosen(op, x) == dispatch.Choice("triton", "no compiled CUDA kernels: no nvcc")
    gpu["triton"] = "no triton"
    assert chosen(op, x).backend == "eager"


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("op", PASSES + CONVOLUTIONS)
def test_what_was_asked_for(gpu, op, name):
    with dispatch.backend(name):
        assert chosen(op, OnGpu()) == dispatch.Choice(name, f"backend {name!r} was asked for")


@pytest.mark.parametrize(("name", "detail"), [("cuda_plane", DETAIL), ("cuda_strip", STRIP)])
@pytest.mark.parametrize("op", PASSES + CONVOLUTIONS)
def test_a_backend_for_hopper_has_one_op_and_hands_on_the_others(gpu, op, name, detail):
    with dispatch.backend(name):
        choice = dispatch.pick(op, OnGpu(), convolution=detail if op in CONVOLUTIONS else None)[0]
        if op == "conv_bn_relu":
            assert choice == dispatch.Choice(name, f"backend {name!r} was asked for")
        else:
            assert choice == dispatch.Choice("cuda", f"{name} has no kernel for {op}")


def test_the_plane_kernel_hands_on_what_it_refuses(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with dispatch.backend("cuda_plane"):
        assert chosen("conv_bn_relu", OnGpu(torch.float32)).backend == "cuda"
        assert chosen("conv_bn_relu", OnGpu(memory_format=torch.contiguous_format)).backend == "torch"
        choice = dispatch.pick("conv_bn_relu", OnGpu(), convolution=convolution(40))[0]
        assert choice.backend == "cuda" and "not 40" in choice.reason
        choice = dispatch.pick("conv_bn_relu", OnGpu(), convolution=STRIP)[0]
        assert choice == dispatch.Choice("cuda", "the plane kernel takes output channels from 128 on, not 64")


def test_the_plane_kernel_runs_by_default_only_where_it_was_measured(gpu, monkeypatch):
    x, name, config = OnGpu(), "cuda_plane", {"places": 2}
    assert chosen("conv_bn_relu", x).backend == "cuda"
    table = remembered.table(None)
    seconds = {name: 1e-5, "cuda": 2e-5}
    with dispatch.record_keys() as keys:
        chosen("conv_bn_relu", x)
    table.entries = {keys[0]: remembered.entry(seconds, {name: config})}
    monkeypatch.setattr(remembered, "table", lambda device: table)
    assert chosen("conv_bn_relu", x)[:1] == (name,) and chosen("conv_bn_relu", x).config == config
    assert chosen("conv_bn_relu", x).reason == "measured: 10.0 us; cuda: 20.0 us"


def convolution_call(shape, conv, dtype=torch.bfloat16):
    x, weight = (calls.Spec(tuple(s), dtype, torch.channels_last) for s in (shape, conv.weight.shape))
    norm = dict.fromkeys(
        ("mean", "var", "bn_weight", "bn_bias"),
        calls.Spec((conv.out_channels,), torch.float32, torch.contiguous_format),
    )
    rest = {"residual": None, "stride": conv.stride, "padding": conv.padding, "dilation": (1, 1), "groups": 1}
    values = {"x": x, "weight": weight, **norm, **rest, "eps": 1e-5, "activation": 1}
    return calls.Call("conv_bn_relu", tuple(values.items()))


def without_tiles(monkeypatch):
    """The tiles of `cuda` are asked for with tensors on the device."""
    cuda = dispatch.BACKENDS["cuda"]._replace(configurations=lambda op, convolution: [])
    monkeypatch.setitem(dispatch.BACKENDS, "cuda", cuda)


@pytest.mark.parametrize(
    ("n", "k", "kernel", "dtype", "candidate"),
    [
        pytest.param(64, 128, 3, torch.bfloat16, True, id="large-batch"),
        pytest.param(65, 128, 3, torch.bfloat16, True, id="two-groups-of-images"),
        pytest.param(8, 128, 3, torch.bfloat16, False, id="small-batch"),
        pytest.param(64, 128, 1, torch.bfloat16, False, id="1x1"),
        pytest.param(64, 100, 3, torch.bfloat16, False, id="ragged-channels"),
        pytest.param(64, 128, 3, torch.float32, False, id="float32"),
    ],
)
def test_where_the_plane_kernel_is_measured(gpu, monkeypatch, n, k, kernel, dtype, candidate):
    """By `tune`, which tries its launches too, and by freeze()."""
    without_tiles(monkeypatch)
    conv = torch.nn.Conv2d(64, k, kernel, bias=False, padding=kernel // 2)
    call = convolution_call((n, 64, 8, 8), conv, dtype)
    names = [found for found in tune.options(call, torch.device("cuda")) if found.startswith("cuda_plane")]
    assert names[:1] == ["cuda_plane"] * candidate and (len(names) > 1) is candidate
    site = ConvBn("conv", conv, torch.nn.BatchNorm2d(k), shape=call["x"].shape)
    found = layers.options(site, dtype, torch.device("cuda"))
    assert ("cuda_plane" in found) is candidate
    assert ("cuda_plane places=2" in found) is candidate
    pairs = {"cuda_plane cluster=2", "cuda_plane places=2 cluster=2"}
    assert pairs & set(found) == (pairs if n > 64 else set())
    assert pairs & set(tune.options(call, torch.device("cuda"))) == (pairs if n > 64 else set())


def test_the_strip_kernel_hands_on_what_it_refuses(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with dispatch.backend("cuda_strip"):
        assert chosen("conv_bn_relu", OnGpu()) == dispatch.Choice(
            "cuda", "the strip kernel takes input and output channels 64, not 128"
        )
        strided = dispatch.pick("conv_bn_relu", OnGpu(), convolution=convolution(64, stride=2))[0]
        assert strided == dispatch.Choice("cuda", "the strip kernel takes stride 1, not 2")
        wide = dispatch.pick("conv_bn_relu", OnGpu(torch.float32), convolution=convolution(64, dtype=torch.float32))[0]
        assert wide == dispatch.Choice("cuda", "the strip kernel multiplies float16 and bfloat16, not float32")
        nchw = dispatch.pick("conv_bn_relu", OnGpu(memory_format=torch.contiguous_format), convolution=STRIP)[0]
        assert nchw.backend == "torch"


@pytest.mark.parametrize(("n", "stride", "candidate"), [(8, 1, True), (7, 1, False), (8, 2, False)])
def test_where_the_strip_kernel_is_measured(gpu, monkeypatch, n, stride, candidate):
    """And it runs there by default when it was the fastest."""
    without_tiles(monkeypatch)
    conv = torch.nn.Conv2d(64, 64, 3, stride, padding=1, bias=False)
    call = convolution_call((n, 64, 8, 8), conv)
    assert ("cuda_strip" in tune.options(call, torch.device("cuda"))) is candidate
    site = ConvBn("conv", conv, torch.nn.BatchNorm2d(64), shape=(n, 64, 8, 8))
    assert ("cuda_strip" in layers.options(site, torch.bfloat16, torch.device("cuda"))) is candidate
    table = remembered.table(None)
    with dispatch.record_keys() as keys:
        assert dispatch.pick("conv_bn_relu", OnGpu(), convolution=STRIP)[0].backend == "cuda"
    table.entries = {keys[0]: remembered.entry({"cuda_strip": 1e-5, "cuda": 2e-5}, {})}
    monkeypatch.setattr(remembered, "table", lambda device: table)
    assert dispatch.pick("conv_bn_relu", OnGpu(), convolution=STRIP)[0].backend == "cuda_strip"


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_where_a_convolution_stays_torchs(gpu, op, monkeypatch):
    assert chosen(op, OnGpu(memory_format=torch.contiguous_format)).backend == "torch"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert chosen(op, OnGpu(torch.float32)).backend == "torch"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert chosen(op, OnGpu(torch.float32)).backend == "cuda"


def test_a_measured_kernel_with_statistics_runs_however_few_its_tiles(gpu):
    x, weight = OnGpu(), OnGpu()
    with dispatch.record_keys() as keys:
        assert dispatch.choose_conv_stats(x, weight, DETAIL).reason.startswith("1 tiles are too few")
    remembered.table(x.device).store(
        {keys[0]: remembered.entry({"cuda": 1e-6, "torch": 2e-6}, {"cuda": {"tile": "64x64"}})}
    )
    choice = dispatch.choose_conv_stats(x, weight, DETAIL)
    assert (choice.backend, choice.config) == ("cuda", {"tile": "64x64"}) and choice.reason.startswith(
        "measured: 1.0 us"
    )


@pytest.mark.parametrize("name", ["cuda", "triton", "cuda_plane", "cuda_strip"])
def test_launchers_take_their_configuration_as_one_dictionary(gpu, monkeypatch, name):
    backend = dispatch.BACKENDS[name]
    monkeypatch.setitem(dispatch.BACKENDS, name, backend._replace(kernels={"conv_bn_relu": dict}))
    kernel = dispatch.kernel(dispatch.Choice(name, "measured", {"num_stages": 4}), "conv_bn_relu")
    assert kernel() == {"config": {"num_stages": 4}}


def test_ops_of_the_library_take_a_configuration_by_name():
    class Library:
        def conv_bn_relu(*tensors, **given):
            return given.update(seen=True) or seen.append(given)

    seen, norm = [], Norm(*[None] * 5, 1e-5)
    launcher = cuda.kernels(Library)["conv_bn_relu"]
    x = torch.empty(SHAPE)
    launcher(x, torch.empty(128, 64, 3, 3), Epilogue(norm), x, DETAIL, config={"tile": "64x64", "splits": 2})
    assert seen == [{"allow_tf32": False, "tile": "64x64", "splits": 2, "seen": True}]
