"""The compiled library itself: messages for bad arguments, what it tells of itself, how its absence is told."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from resnet_fused.kernels import cuda, library, passes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import aot_cuda

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native
EPS = 1e-5
X = torch.randn(2, 8, 3, 3)
BAD = {
    "residual has shape [1, 8, 3, 3], but x has [2, 8, 3, 3]": lambda: ops.add_relu(X, X[:1], X.clone()),
    "residual has dtype Double, but x has Float": lambda: ops.add_relu(X, X.double(), X.clone()),
    "out has strides [72, 1, 24, 8], but x has [72, 9, 3, 1]": lambda: ops.add_relu(
        X, X, X.to(memory_format=torch.channels_last)
    ),
    "x has dtype Double, but the kernels take Float, Half or BFloat16": lambda: ops.add_relu(*[X.double()] * 3),
    "x must be contiguous or channels_last, but has strides [72, 18, 3, 1] for shape [2, 4, 3, 3]": lambda: (
        ops.add_relu(*[X[:, ::2]] * 3)
    ),
    "x must have at least 2 dimensions, but has shape [8]": lambda: ops.bn_stats(
        X[0, :, 0, 0].clone(), *[torch.empty(8)] * 2, None, None, None, 0.1, EPS
    ),
    "mean has shape [7], but x has 8 channels": lambda: ops.bn_stats(
        X, torch.empty(7), torch.empty(8), None, None, None, 0.1, EPS
    ),
    "invstd has dtype Double, but must be Float": lambda: ops.bn_stats(
        X, torch.empty(8), torch.empty(8).double(), None, None, None, 0.1, EPS
    ),
    "running_var has stride [2], but must be dense": lambda: ops.bn_stats(
        X, torch.empty(8), torch.empty(8), None, torch.empty(16)[::2], None, 0.1, EPS
    ),
    "num_batches_tracked has dtype Float and shape [], but must be one Long": lambda: ops.bn_stats(
        X, torch.empty(8), torch.empty(8), None, None, torch.zeros(()), 0.1, EPS
    ),
    "x has no values: shape [0, 8, 3, 3]": lambda: ops.bn_stats(
        X[:0], torch.empty(8), torch.empty(8), None, None, None, 0.1, EPS
    ),
    "weight has dtype Long, but the kernels take Float, Half or BFloat16": lambda: ops.bn_relu(
        X, torch.empty(8), torch.ones(8), torch.ones(8).long(), None, None, X.clone(), EPS, True
    ),
    "relu needs out": lambda: ops.bn_relu_backward_reduce(X, None, None, None, None, torch.empty(8), None, None, True),
    "x comes without mean, var_or_invstd or sum_gx": lambda: ops.bn_relu_backward_reduce(
        X, X, X, None, None, torch.empty(8), None, None, True
    ),
    "grad_x with batch statistics needs x, mean, sum_g and sum_gx": lambda: ops.bn_relu_backward_apply(
        X, None, X, None, torch.ones(8), None, None, None, X.clone(), None, None, True
    ),
    "grad2 has shape [1, 8, 3, 3], but grad has [2, 8, 3, 3]": lambda: ops.bn_relu_backward_reduce(
        X, None, X, None, None, torch.empty(8), None, None, True, X[:1]
    ),
    "parts must be float32 [world, 2 * channels + 1], but is Float [2, 16]": lambda: ops.bn_stats_merge(
        torch.zeros(2, 16), *[torch.empty(8)] * 4, 1.0, EPS
    ),
    "var must be float32 [8], but is Float [7]": lambda: ops.bn_stats_merge(
        torch.zeros(2, 17), torch.empty(8), torch.empty(8), torch.empty(7), torch.empty(8), 1.0, EPS
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_name_the_op_the_argument_and_both_values(message):
    with pytest.raises(RuntimeError) as error:
        BAD[message]()
    op, _, text = str(error.value).partition(": ")
    assert text == message and hasattr(ops, op)


def test_a_tensor_on_another_device_is_refused():
    with pytest.raises((RuntimeError, NotImplementedError), match="add_relu"):
        ops.add_relu(X, X.to("meta"), X.clone())


def test_empty_maps_launch_nothing():
    for shape in ((0, 8, 3, 3), (2, 8, 0, 3), (2, 0, 3, 3)):
        x, c = torch.empty(shape), shape[1]
        ops.add_relu(x, x, x)
        ops.bn_relu(x, torch.zeros(c), torch.ones(c), None, None, x, x, EPS, True)


def test_library_tells_what_it_is():
    info = library.build_info()
    assert info["abi"] == library.ABI and info["stable_abi"] == "2.11" and info["compiler"]
    assert library.has_cuda() == (info["cuda"] is not None)
    assert info["cuda"] is None or "9.0a" in info["architectures"] or os.environ.get("TORCH_CUDA_ARCH_LIST")
    assert info["cuda"] is not None or info["without_cuda"]


@pytest.mark.skipif(not library.has_cuda(), reason="built without the CUDA part")
def test_every_op_has_a_cuda_kernel_and_needs_no_driver_to_load():
    for op in (*passes.OPS, *cuda.CONVOLUTIONS, "conv_choices", "pool_linear"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"resnet_fused_native::{op}", "CUDA"), op


@pytest.mark.skipif(not library.has_cuda(), reason="built without the CUDA part")
def test_the_library_is_small_for_all_its_architectures():
    """It has to travel to machines without a compiler, some of whose doors are 64 MiB wide. Uncompressed it was 83 MB."""
    assert library.LIBRARY.stat().st_size < 40e6


@pytest.mark.skipif(not library.has_cuda() or aot_cuda.cuobjdump() is None, reason="no CUDA part, or no cuobjdump")
def test_compressed_kernels_are_there_for_every_architecture():
    listed = [
        subprocess.run(
            [aot_cuda.cuobjdump(), option, library.LIBRARY], capture_output=True, text=True, check=True
        ).stdout
        for option in ("-lelf", "-lptx")
    ]
    for arch in library.build_info()["architectures"]:
        binary, ptx = not arch.startswith("PTX"), arch.startswith("PTX") or arch.endswith("+PTX")
        name = f"sm_{re.sub(r'PTX|[ .+]', '', arch)}"
        for wanted, text in zip((binary, ptx), listed, strict=True):
            assert not wanted or len(re.findall(rf"\b{name}\b", text)) >= 20, f"{arch}: kernels are missing"


def test_absence_is_told_not_raised(monkeypatch, tmp_path):
    ask = library.why_absent.__wrapped__
    monkeypatch.setattr(library, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_native.so")
    assert "never ran here" in ask()
    (tmp_path / "record.json").write_text('{"not_built": "no C++ compiler found", "stable_abi": "2.99"}')
    assert ask() == "the compiled library was not built: no C++ compiler found"
    (tmp_path / "_native.so").write_bytes(b"not a library")
    with pytest.warns(UserWarning, match="does not load in torch"):
        assert "built for torch 2.99" in ask() and "does not load in torch " + torch.__version__ in ask()
    monkeypatch.undo()
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    with pytest.warns(UserWarning, match="stale"):
        assert "stale" in ask() and f"ABI {library.ABI}" in ask()


@pytest.mark.parametrize(
    ("record", "present", "missing"),
    [
        ('{"not_built": "no C++ compiler found"}', False, "the compiled library was not built: no C++ compiler found"),
        ("{}", False, "the compiled library was not built: `python setup.py build_ext --inplace` never ran here"),
        ('{"not_built": "RESNET_FUSED_BUILD=0"}', False, None),
        ('{"cuda_failed": true, "without_cuda": "nvcc failed"}', True, "the CUDA kernels were not built: nvcc failed"),
        ('{"without_cuda": "no GPU here"}', True, None),
    ],
    ids=["failed", "never", "not-asked-for", "cuda-failed", "not-wanted"],
)
def test_an_import_says_what_is_missing_and_the_command_that_mends_it(monkeypatch, tmp_path, record, present, missing):
    monkeypatch.setattr(library, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "in stalled" / "_native.so")
    library.LIBRARY.parent.mkdir()
    library.RECORD.write_text(record)
    if present:
        library.LIBRARY.touch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library.warn_of_absence()
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == (missing is not None) and all("\n" not in text for text in texts)
    if missing:
        assert (
            texts[0].startswith(f"resnet_fused: {missing}. ") and "pip install --force-reinstall --no-deps" in texts[0]
        )
        (tmp_path / "setup.py").touch()
        with pytest.warns(UserWarning, match=r"cd .* && python setup\.py build_ext --inplace$"):
            library.warn_of_absence()


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"url": "file:///a%20b", "dir_info": {}}', "file:///a%20b"),
        ('{"url": "file:///a", "vcs_info": {"vcs": "git"}}', "git+file:///a"),
        (None, "resnet_fused"),
    ],
    ids=["folder", "git", "index"],
)
def test_the_command_names_what_was_installed(monkeypatch, tmp_path, origin, command):
    class Distribution:
        def read_text(self, name):
            return origin if name == "direct_url.json" else None

    monkeypatch.setattr(library, "LIBRARY", tmp_path / "package" / "_native.so")
    monkeypatch.setattr(library.importlib.metadata, "distribution", lambda name: Distribution())
    assert library._remedy().endswith(f" --no-cache-dir {command}")
