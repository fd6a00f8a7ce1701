"""What the dispatcher chooses for tensors on a GPU, asked without one: tensors that only say that they are there."""

import pytest
import torch

from resnet_fused import dispatch, tuning

PASSES = (
    "add_relu", "add_relu_backward", "bn_stats", "bn_relu", "bn_relu_backward_reduce", "bn_relu_backward_apply",
    "bn_add_bn_relu",
)  # fmt: skip
CONVOLUTIONS = ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool", "conv_stats")
DETAIL = (torch.Size((64, 64, 3, 3)), (1, 1), (1, 1), (1, 1), 1)


class OnGpu(torch.Tensor):
    """No memory, and no operator runs on it."""

    def __new__(cls, dtype=torch.float16, memory_format=torch.channels_last):
        strides = torch.empty(2, 64, 8, 8, device="meta").contiguous(memory_format=memory_format).stride()
        return torch.Tensor._make_wrapper_subclass(cls, (2, 64, 8, 8), strides=strides, dtype=dtype, device="cuda")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran on a tensor that is not there")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine where both backends run and nothing was tuned; yields what to change."""
    present = {"cuda": None, "triton": None}
    for name in present:
        monkeypatch.setattr(dispatch, f"_without_{name}", lambda name=name: present[name])
        backend = dispatch.BACKENDS[name]._replace(why_not=lambda name=name: present[name])
        monkeypatch.setitem(dispatch.BACKENDS, name, backend)
    monkeypatch.setattr(tuning, "table", lambda device: tuning.Table({"device": "none", "arch": "none"}, tmp_path))
    return present


def chosen(op, x):
    return dispatch.pick(op, x, detail=DETAIL if op in CONVOLUTIONS else ())[0]


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


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_where_a_convolution_stays_torchs(gpu, op, monkeypatch):
    assert chosen(op, OnGpu(memory_format=torch.contiguous_format)).backend == "torch"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert chosen(op, OnGpu(torch.float32)).backend == "torch"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert chosen(op, OnGpu(torch.float32)).backend == "cuda"


def test_a_measured_kernel_with_statistics_runs_however_few_its_tiles(gpu):
    x, weight, where = OnGpu(), OnGpu(), DETAIL[1:]
    with dispatch.record_keys() as keys:
        assert dispatch.choose_conv_stats(x, weight, x, *where).reason.startswith("1 tiles are too few")
    tuning.table(x.device).store({keys[0]: tuning.entry({"cuda": 1e-6, "torch": 2e-6}, {"cuda": {"tile": "64x64"}})})
    choice = dispatch.choose_conv_stats(x, weight, x, *where)
    assert (choice.backend, choice.config) == ("cuda", {"tile": "64x64"}) and choice.reason.startswith(
        "measured: 1.0 us"
    )
