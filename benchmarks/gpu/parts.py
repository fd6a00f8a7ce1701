"""What `make gpu` runs: one command a part, its time box, and what it needs. Pure: nothing is started here."""

import dataclasses
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBES = ROOT / "benchmarks" / "gpu" / "probes"
# Not -arch=sm_90a: nvcc 13.0 then adds PTX of compute_90, which has no wgmma, to a program.
PROBE_FLAGS = "-std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a"
OP_TESTS = ("add_relu", "bn_relu", "conv_bn_relu", "training_block")
BACKENDS = ("cuda", "triton", "eager")
# Two parts, so that a compiler that takes its whole box costs no other result; both share two models to compare by.
PLAIN = ("eager", "eager, graph", "eager, channels_last", "eager, channels_last, graph", "live", "live, graph", "frozen",
         "cudnn fused", "cudnn fused, graph", "tensorrt", "tensorrt, graph", "cudnn frontend")  # fmt: skip
TRAINING = ("eager, channels_last", "live")
COMPILED = ("eager, channels_last", "frozen", "torch.compile max-autotune freezing graphs", "torch.compile freezing graphs",
            "torch.compile graphs")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """`box`: seconds after which it is stopped. Parts of one stage run at the same time; `lacks`: why it cannot run."""

    name: str
    stage: int
    box: float
    command: tuple
    environment: tuple = ()
    lacks: str | None = None


SMOKE_BOX = 300  # of every part: they take 50 s together on 2 idle cores, and a busy machine is no failure


def _python(*arguments):
    return (sys.executable, *map(str, arguments))


def _missing(tool, *places):
    found = shutil.which(tool) or next((p for p in places if Path(p).exists()), None)
    return found, None if found else f"{tool} not found (PATH, {', '.join(places)})"


def of(device, output, quick=False, smoke=False):
    """The parts in order. `smoke`: the same commands in a miniature, in which nothing is too slow for a CPU."""
    if smoke:
        checks = _checks(device, (SMOKE_BOX, SMOKE_BOX), smoke)
        return [*_facts(SMOKE_BOX), *checks, *_measurements(device, output, 32, ("2",), smoke)]
    measured = _measurements(device, output, 224, ("256", "1", "32"), smoke)
    if quick:
        boxes = {"probes": 15, "steering": 20, "inference-256": 50, "kernels": 40}
        measured = [_within(part, boxes[part.name]) for part in measured if part.name in boxes]
    return [*_facts(20), _library(quick), *_checks(device, (25, 35) if quick else (45, 65), smoke), *measured]


def _within(part, box):
    """`part` with another time box, and its budget in proportion."""
    command = list(part.command)
    if "--budget" in command:
        i = command.index("--budget") + 1
        command[i] = str(round(float(command[i]) * box / part.box, 1))
    return dataclasses.replace(part, box=box, command=tuple(command))


def _facts(box):
    return [Part("info", 0, box, _python("-m", "resnet_fused", "info"))]


def _library(quick):
    """Nothing to do where a library that loads is there; else it is built for this GPU alone, with all cores."""
    code = (
        "import os, subprocess, sys, torch; from resnet_fused.kernels import library\n"
        "why = library.why_absent()\n"
        "print(why or 'the compiled library loads', flush=True)\n"
        "if why is None: sys.exit(0)\n"
        "major, minor = torch.cuda.get_device_capability()\n"
        "arch = f'{major}.{minor}' + 'a' * (major >= 9)\n"
        "environment = os.environ | {'MAX_JOBS': str(os.cpu_count()), 'TORCH_CUDA_ARCH_LIST': arch}\n"
        "sys.exit(subprocess.run([sys.executable, 'setup.py', 'build_ext', '--inplace'], env=environment).returncode)"
    )
    return Part("library", 1, 60 if quick else 180, _python("-c", code))


TRITON_SHARES = 3  # processes that share the tests of an op by Triton: most of their time is the compiler's


def _checks(device, boxes, smoke):
    """Correctness, in two waves in each of which all run at once, because nothing is timed: every instruction and the ops of
    the compiled library, then Triton and the sanitizers. All at once they would be twice as many processes as cores."""
    box, late = boxes
    # What it finds is kept: the measurements, which come later, begin at once.
    made = [Part("check", 2, box, _python("-m", "resnet_fused", "check", "--device", device))]
    if device == "cuda":
        made.append(Part("triton-warm", 2, box, ("nice", *_python("-m", "benchmarks.gpu.warm"))))
        flags = "-x cu -std=c++17 -arch=native -Icsrc -Itests"
        made.append(_compiled("instructions", 2, box, f"{flags} tests/emulator/checks/micro.cpp"))
        hopper = flags.replace("-arch=native", "-gencode=arch=compute_90a,code=sm_90a")
        made.append(_compiled("instructions-hopper", 2, box, f"{hopper} tests/emulator/checks/hopper_checks.cpp"))
        made.append(_compiled("instructions-boxes", 2, box, f"{hopper} tests/emulator/checks/hopper_boxes.cpp"))
        made.append(_compiled("instructions-multicast", 2, box, f"{hopper} tests/emulator/checks/multicast_checks.cpp"))
        made.append(_compiled("instructions-stores", 2, box, f"{hopper} tests/emulator/checks/store_checks.cpp"))
        made.append(_compiled("instructions-clusters", 2, box, f"{flags} tests/emulator/checks/cluster_checks.cpp"))
    for backend in BACKENDS if device == "cuda" else ("native",):
        # Eager's own tensors beyond 2^31 elements are torch's business, and would not fit beside the others'.
        for op in OP_TESTS[:1] if smoke else (*OP_TESTS, *(["large"] if backend != "eager" else [])):
            tests = _python("-m", "pytest", "-q", "-rf", _test(op), f"--device={device}", "-k", backend)
            if backend != "triton":
                made.append(Part(f"tests-{op}-{backend}", 2, box, tests))
                continue
            shares = 1 if op == "large" else TRITON_SHARES
            made += [
                Part(f"tests-{op}-triton-{i}", 3, late, (*tests, "--share", f"{i}/{shares}"))
                for i in range(1, shares + 1)
            ]
    if device == "cuda":
        files = {
            "static-engine": ["frozen_static"], "private-ops": ["conv_choice", "pool_linear"],
            "conv-plane": ["cuda_plane", "conv_input_grad"], "conv-strip": ["cuda_strip"],
            "conv-cluster": ["conv_cluster"], "fp8": ["conv_fp8", "frozen_fp8", "frozen_fp8_refused"],
        }  # fmt: skip
        for name, names in files.items():
            tests = _python("-m", "pytest", "-q", "-rf", *map(_test, names), "--device=cuda")
            made.append(Part(f"tests-{name}", 2, box, tests))
    calls = _python("-m", "benchmarks.gpu.sanitized", "--device", device, "--size", 48, "--model", "resnet18")
    if device == "cpu":
        return [*made, Part("sanitized-calls", 2, box, calls)]
    sanitizer, lacks = _missing("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        command = (sanitizer or "", "--tool", tool, "--error-exitcode", "9", *calls, "--batch", "2")
        made.append(Part(tool, 3, late, command, (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),), lacks))
    return made


def _test(name):
    """The path of tests/**/test_<name>.py, as pytest takes it."""
    (path,) = (ROOT / "tests").rglob(f"test_{name}.py")
    return str(path.relative_to(ROOT))


def _compiled(name, stage, box, arguments):
    """A program that nvcc makes on the spot, and runs."""
    nvcc, lacks = _missing("nvcc", "/usr/local/cuda/bin/nvcc")
    binary = ROOT / "build" / name
    command = f"mkdir -p {binary.parent} && {nvcc} {arguments} -o {binary} && {binary}"
    return Part(name, stage, box, ("sh", "-c", command), lacks=lacks)


def probes(box):
    """The programs of benchmarks/gpu/probes, compiled side by side; one that fails leaves the others theirs."""
    nvcc, lacks = _missing("nvcc", "/usr/local/cuda/bin/nvcc")
    binaries = {source: ROOT / "build" / "probes" / source.stem for source in sorted(PROBES.glob("*.cu"))}
    compiled = "".join(f"{nvcc} {PROBE_FLAGS} {source} -o {binary} & " for source, binary in binaries.items())
    run = "".join(f"{binary} || status=1; " for binary in binaries.values())
    command = (
        f"mkdir -p {ROOT / 'build' / 'probes'}; rm -f {ROOT / 'build' / 'probes'}/*; {compiled}wait; status=0; {run}"
    )
    return Part("probes", 4, box, ("sh", "-c", f"{command}exit $status"), lacks=lacks)


def _measurements(device, output, size, batches, smoke):
    """Alone on the machine, the most telling first: what a cut leaves out matters least."""
    common = ("--device", device, "--output", output, "--size", size)
    common += ("--model", "resnet18") if smoke else ()
    # Of timing for each group of candidates.
    timing = {"resnet": 4, "kernels": 0.3, "gpu.steering": 0.2, "gpu.latency": 0.2, "gpu.fp8": 2}

    def part(name, suite, seconds, *arguments):
        box = SMOKE_BOX if smoke else seconds
        # What is started within the budget still needs its time, and all models are timed together at the end.
        budget = round(box * (0.5 if suite == "resnet" else 0.75), 1)
        limits = ("--seconds", 0 if smoke else timing[suite], "--budget", budget)
        command = _python("-m", f"benchmarks.{suite}", *common, *limits, *arguments)
        return Part(name, 4, box, command)

    plain = ("--peers", "eager", "live", "frozen") if smoke else ("--peers", *PLAIN)
    few, one = (("--first", 2), ("--first", 1)) if smoke else ((), ())
    made = [
        *([probes(20)] if device == "cuda" else []),
        part("steering", "gpu.steering", 30, "--batch", *batches, *few),
        *([part("latency", "gpu.latency", 20, "--batch", 1, 8)] if device == "cuda" else []),
        *(part(f"inference-{b}", "resnet", 50 if b == "256" else 40, "--batch", b, *plain) for b in batches),
        part("kernels", "kernels", 50, "--batch", *batches, *one, "--peers", "eager", "fused"),
        part("training", "resnet", 35, "--mode", "train", "--batch", batches[0], "--peers", *TRAINING),
    ]
    if device == "cuda":
        made.append(part("fp8", "gpu.fp8", 30, "--batch", batches[0]))
    made.append(_tune(device, 40, smoke))
    if not smoke:  # compiling takes minutes
        made.append(part("compiled", "resnet", 50, "--batch", *batches[:2], "--peers", *COMPILED))
        compiled = ("live", "torch.compile")
        made.append(
            part("compiled-training", "resnet", 35, "--mode", "train", "--batch", batches[0], "--peers", *compiled)
        )
    # A miniature measures nothing worth a machine of its own.
    return [dataclasses.replace(p, stage=2 if smoke else 4 + i) for i, p in enumerate(made)]


def _tune(device, box, smoke):
    """What it measures comes back in the folder `tuning` of the output, a table for the package to ship."""
    what = (
        ("resnet18", "1x3x32x32", "--seconds", 1)
        if smoke
        else ("resnet34", "256x3x224x224", "--dtype", "bfloat16", "--seconds", 25)
    )
    return Part(
        "tune", 4, SMOKE_BOX if smoke else box, _python("-m", "resnet_fused", "tune", *what, "--device", device)
    )
