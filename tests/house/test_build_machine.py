"""What the build finds on a machine, and what it makes of what is asked for. Compiles nothing."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from repository import tracked

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "setup.py").exists():
    pytest.skip("not a source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "tools"))
import environment  # noqa: E402
import native_build  # noqa: E402
import native_machine  # noqa: E402


@pytest.fixture
def archs(monkeypatch):
    """What is built for a TORCH_CUDA_ARCH_LIST, on a machine with some GPUs, by an nvcc that knows some architectures."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def chosen(listed=None, everything=False, gpus=(), known=(75, 80, 86, 87, 89, 90, 100, 120), said=None):
        listing = "".join(f"compute_{n}\n" for n in known)
        monkeypatch.setattr(native_machine, "output_of", lambda *command: listing)
        monkeypatch.setattr(native_machine, "gpus", lambda: list(gpus))
        if listed is not None:
            monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
        return native_machine.architectures("nvcc", everything, (said if said is not None else []).append)

    return chosen


ALL = ["8.0", "8.6", "8.9", "9.0a", "10.0a", "PTX 100"]


def test_all_architectures_end_in_ptx_for_later_devices(archs):
    assert archs(everything=True) == ALL
    flags = native_build.gencode(ALL)
    assert "-gencode=arch=compute_90a,code=sm_90a" in flags and flags.endswith("arch=compute_100,code=compute_100")


def test_an_older_nvcc_builds_what_it_knows(archs):
    assert archs(everything=True, known=(80, 86, 89, 90)) == ["8.0", "8.6", "8.9", "9.0a", "PTX 90"]


@pytest.mark.parametrize(
    ("gpus", "names"),
    [([80], ["8.0"]), ([90], ["9.0a"]), ([75, 86, 90], ["8.6", "9.0a"]), ([75], []), ([], []), ([130], ALL)],
    ids=["one", "hopper", "three", "too-old", "none", "newer-than-nvcc"],
)
def test_the_gpus_of_this_machine_are_built_for(archs, gpus, names):
    assert archs(gpus=gpus) == names
    assert archs(gpus=gpus, everything=True) == ALL


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("8.6;9.0+PTX", ["8.6", "9.0+PTX"]),
        ("8.0,8.6", ["8.0", "8.6"]),
        (" 8.0  8.0 ", ["8.0"]),
        ("Ampere", ["8.0", "8.6+PTX"]),
        ("Ampere;Hopper", ["8.0", "8.6+PTX", "9.0+PTX"]),
        ("7.5 8.0", ["8.0"]),
        ("5.2 6.1 7.0+PTX 8.6", ["8.6"]),
    ],
)
def test_architecture_list_is_respected(archs, listed, names):
    said = []
    assert archs(listed, gpus=[90], said=said) == names
    old = [arch for arch in listed.split() if arch[0] in "567"]
    assert said == (
        [f"TORCH_CUDA_ARCH_LIST has {', '.join(old)}, left out: the kernels need 8.0 or later"] if old else []
    )


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("8.0 Kepler2", "TORCH_CUDA_ARCH_LIST has Kepler2, which nvcc does not know"),
        ("21.0", "TORCH_CUDA_ARCH_LIST has 21.0, which nvcc does not know"),
        ("7.0;7.5", "TORCH_CUDA_ARCH_LIST=7.0;7.5 has no architecture of 8.0 or later"),
    ],
)
def test_an_architecture_list_that_cannot_be_honoured_is_one_line(archs, listed, message):
    with pytest.raises(native_machine.CannotBuild) as error:
        archs(listed)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("cuda", "without", "gpus", "listed", "why"),
    [
        (None, False, [90], "9.0", "RESNET_FUSED_BUILD=cpu"),
        ("here", True, [90], "9.0", "torch is built without CUDA"),
        ("here", False, [], None, "no GPU here"),
        ("here", False, [75], None, "older than compute capability 8.0"),
        ("here", False, [90], None, None),
        ("here", False, [], "9.0", None),
        ("all", True, [], None, None),
    ],
    ids=["cpu", "torch-for-cpus", "no-gpu", "old-gpu", "gpu", "listed", "all"],
)
def test_cuda_is_compiled_only_where_it_can_be_used_or_is_asked_for(
    archs, monkeypatch, cuda, without, gpus, listed, why
):
    archs(listed, gpus=gpus, everything=True)
    monkeypatch.setattr(native_machine, "torch_without_cuda", lambda: without)
    monkeypatch.setattr(native_machine, "find_nvcc", lambda: ("nvcc", "13.0.88"))
    nvcc, facts = native_build._nvcc(cuda, lambda text: None)
    assert (nvcc is None) == (why is not None) and (why is None or why in facts["without_cuda"])
    assert "cuda_failed" not in facts, "nothing is missing that was wanted"


@pytest.mark.parametrize(
    ("line", "without"),
    [
        ("cuda: str | None = None", True),
        ("cuda: Optional[str] = '13.0'", False),
        ("cuda = None", True),
        ("debug = False", False),
    ],
)
def test_the_torch_of_the_environment_that_is_installed_into(tmp_path, monkeypatch, line, without):
    """Also in pip's build isolation, where it cannot be imported."""
    monkeypatch.setattr(native_machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(native_machine.sysconfig, "get_path", lambda name: str(tmp_path))
    assert not native_machine.torch_without_cuda()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip = None\n")
    assert native_machine.torch_without_cuda() == without


def test_an_nvcc_before_hopper_builds_no_cuda_part(monkeypatch):
    monkeypatch.setattr(native_machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(native_machine, "output_of", lambda *command: "release 11.8, V11.8.89")
    with pytest.raises(
        native_machine.CannotBuild, match=r"^nvcc 11\.8\.89 does not know sm_90a: CUDA 12 or later is needed$"
    ):
        native_machine.find_nvcc()


def test_jobs_follow_cores_memory_and_max_jobs(monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(native_machine, "cores", lambda: 16)
    monkeypatch.setattr(native_machine, "available_memory", lambda: 5 << 30)
    assert native_machine.jobs() == 2
    monkeypatch.setattr(native_machine, "cores", lambda: 1)
    assert native_machine.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "7")
    assert native_machine.jobs() == 7
    for wrong in ("abc", "0", "-1", "1.5"):
        monkeypatch.setenv("MAX_JOBS", wrong)
        said = []
        assert native_machine.jobs(said.append) == 1
        assert said == [f"MAX_JOBS must be a whole number above 0, not {wrong}: left out of account"]


def test_the_extra_for_tests_has_what_make_test_installs():
    extra = re.search(r"^test = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL).group(1)
    assert {*environment.TEST.values(), "triton"} <= set(re.findall(r'"([^"]+)"', extra))


def test_the_source_archive_has_every_file(tmp_path):
    """Also the tests, which run from it."""
    tree, names = tmp_path / "tree", {str(path.relative_to(ROOT)) for path in tracked()}
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=tree, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        packed = {member.name.partition("/")[2] for member in files if member.isfile()}
    assert names - packed == set()
