"""A backend is available on a device: several GPUs of different kinds, drivers, builds and toolchains, none of them there."""

import pytest
import torch

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.kernels import cuda, gpu, library, triton
from resnet_fused.kernels.hopper.plane import schedule as plane
from resnet_fused.measure.trust import verdicts
from resnet_fused.reports import info

BUILT = {
    "compiler": "g++",
    "stable_abi": "2.11",
    "torch": "2.13",
    "cuda": "nvcc 13.0.88",
    "architectures": ["8.0", "8.6", "8.9", "9.0a", "10.0a", "PTX 100"],
}
GATES = (cuda.why_not, triton.why_not, plane.why_not)


class Machine:
    """What torch and the library say; the capabilities of its GPUs in order."""

    def __init__(self):
        self.capabilities, self.driver, self.built, self.current = [(8, 0), (9, 0)], 13000, BUILT, 0

    def capability(self, device=None):
        # device: a number, a torch.device or None.
        index = device if isinstance(device, int) else getattr(device, "index", None)
        return self.capabilities[self.current if index is None else index]


@pytest.fixture
def machine(monkeypatch):
    """A machine with an A100 and an H100."""
    found = Machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found.capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found.capabilities))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: found.current)
    monkeypatch.setattr(torch.cuda, "get_device_capability", found.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: found.driver, raising=False)
    monkeypatch.setattr(library, "why_absent", lambda: None)
    monkeypatch.setattr(library, "has_cuda", lambda: True)
    monkeypatch.setattr(library, "build_info", lambda: found.built)
    monkeypatch.setattr(library, "cpu_isa", lambda: "portable")
    monkeypatch.setattr(triton.env, "TRITON_INTERPRET", False)
    for gate in GATES:
        gate.forget()
    yield found
    for gate in GATES:
        gate.forget()


def why_not(name, index):
    return dispatch.BACKENDS[name].why_not(torch.device("cuda", index))


def test_two_kinds_of_gpu_in_one_process(machine):
    """Whichever is asked first, and whichever is current."""
    for name in ("cuda_plane", "cuda_strip"):
        assert why_not(name, 0) == "the Hopper kernels need compute capability 9.0, this is 8.0"
        assert why_not(name, 1) is None
        assert dispatch.why_not_here(dispatch.BACKENDS[name]) is None
    assert why_not("cuda", 0) is None and why_not("cuda", 1) is None
    for current, runs in ((0, False), (1, True), (0, False)):
        machine.current = current
        assert (plane.why_not(torch.device("cuda")) is None) is runs


def test_backends_say_it_for_each_device(machine, monkeypatch):
    monkeypatch.setattr(
        verdicts, "known", lambda backend, device: {"conv_stats": "a hang"} if device.index == 1 else {}
    )
    assert resnet_fused.backends("cuda:0")["cuda_plane"].startswith("the Hopper kernels need")
    assert resnet_fused.backends("cuda:0")["cuda"] == "available"
    assert resnet_fused.backends("cuda:1")["cuda"] == "available; conv_stats is refused on cuda:1: a hang"
    assert resnet_fused.backends()["cuda_plane"] == "available; conv_stats is refused on cuda:1: a hang"
    assert resnet_fused.backends("cuda:0")["native"] == "it takes no cuda tensors"
    assert resnet_fused.backends("cpu")["cuda"] == "it takes no cpu tensors"
    text = info.text()
    assert all(f"backends on {device}:" in text for device in ("cpu", "cuda:0", "cuda:1")) and "gpu 1" in text


@pytest.mark.parametrize(
    ("driver", "built", "why"),
    [
        pytest.param(13000, "nvcc 13.0.88", None, id="equal"),
        pytest.param(13010, "nvcc 13.0.88", None, id="later-minor"),
        pytest.param(13000, "nvcc 13.2.0", None, id="minor-versions-fit"),
        pytest.param(14000, "nvcc 13.0.88", None, id="later-major"),
        pytest.param(13000, "nvcc 12.8.93", None, id="older-toolkit"),
        pytest.param(12080, "nvcc 13.0.88", "must know CUDA 13, it knows 12.8", id="older-driver"),
    ],
)
def test_the_driver_knows_the_toolkit(machine, driver, built, why):
    machine.driver, machine.built = driver, BUILT | {"cuda": built}
    found = why_not("cuda", 0)
    assert found is None if why is None else why in found and built in found


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        pytest.param((8, 0), ["8.0"], True, id="same"),
        pytest.param((8, 9), ["8.0"], True, id="later-minor"),
        pytest.param((8, 0), ["8.6"], False, id="earlier-minor"),
        pytest.param((9, 0), ["8.0"], False, id="later-major"),
        pytest.param((9, 0), ["8.0+PTX"], True, id="ptx"),
        pytest.param((9, 0), ["8.0", "PTX 80"], True, id="ptx-of-the-newest"),
        pytest.param((8, 0), ["PTX 100"], False, id="ptx-of-a-later-one"),
        pytest.param((9, 0), ["9.0a"], True, id="hopper"),
        pytest.param((12, 0), ["9.0a", "10.0a"], False, id="none-but-its-own"),
        pytest.param((10, 3), ["10.0a"], False, id="a-is-not-for-later-minors"),
        pytest.param((10, 3), ["10.0f"], True, id="f-is-for-the-family"),
        pytest.param((12, 1), ["10.0a", "PTX 100"], True, id="ptx-for-later"),
        pytest.param((9, 0), ["9.0a+PTX"], True, id="a-with-ptx"),
        pytest.param((10, 0), ["9.0a+PTX"], False, id="ptx-of-a-is-its-own"),
    ],
)
def test_the_build_is_for_the_device(machine, capability, architectures, runs):
    machine.capabilities, machine.built = [capability], BUILT | {"architectures": architectures}
    found = why_not("cuda", 0)
    assert (found is None) is runs
    assert runs or (found.endswith("this device is {}.{}".format(*capability)) and architectures[0] in found)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_old_devices_and_none(machine, name):
    machine.capabilities = [(7, 5)]
    assert "need compute capability 8.0, this device has 7.5" in why_not(name, 0)
    dispatch.BACKENDS[name].why_not.forget()
    machine.capabilities = []
    assert why_not(name, 0).startswith("no CUDA device")
    assert "for CUDA devices, not cpu" in dispatch.BACKENDS[name].why_not(torch.device("cpu"))


def test_what_triton_compiles_with(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(triton.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    monkeypatch.setattr(triton.sysconfig, "get_path", lambda *which: str(tmp_path))
    monkeypatch.setattr(triton.env, "PTXAS", tmp_path / "ptxas")
    monkeypatch.setattr(triton.env, "CC", None)

    def why():
        triton.why_not.forget()
        return why_not("triton", 0)

    assert "needs Python.h" in why()
    (tmp_path / "Python.h").touch()
    assert "needs ptxas" in why()
    (tmp_path / "ptxas").touch()
    assert "needs ptxas" in why(), "it must be a program"
    (tmp_path / "ptxas").chmod(0o700)
    assert why() is None
    monkeypatch.setattr(triton.env, "CC", "cc-of-mine")
    assert why() == "Triton needs a C compiler, found none of cc-of-mine (CC names another)"


def test_what_cannot_run_falls_back_with_the_reason(machine, monkeypatch):
    from on_gpu import OnGpu

    machine.driver = 12080
    monkeypatch.setattr(triton, "_why_no_compiler", lambda package: "no C compiler")
    choice = dispatch.pick("add_relu", OnGpu())[0]
    assert choice.backend == "eager" and choice.reason.startswith("the library was compiled by nvcc 13")
    assert choice.reason.endswith("; no C compiler")


def test_a_device_without_an_index_is_the_current_one(machine):
    machine.current = 1
    assert gpu.numbered(torch.device("cuda")) == torch.device("cuda", 1)
    assert gpu.numbered(torch.device("cpu")) == torch.device("cpu")
