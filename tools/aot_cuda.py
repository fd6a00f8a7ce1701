"""Compiles every CUDA kernel for GPUs that are not there, and reads what came out.

    python tools/aot_cuda.py [--arch 80 90 100] [--only NAME]

Needs nvcc, and cuobjdump from the toolkit or from Triton's wheel. Exit status 1 on a compiler warning, on spills or a
stack frame, or when a kernel for tensor cores has no tensor-core instruction. A source named *_sm90a.cu is compiled for
sm_90a only; its kernels must multiply with HGMMA what UTMALDG brings (in pairs of blocks with .MULTICAST), without local
memory, and those that exchange registers must begin with 168. One named *_sm90.cu is compiled for 90 and later; its kernels
must have a cluster's barrier, reads of other blocks' memory and the early launch's instructions.
Results are kept under .cache/aot_cuda by the content of everything a source includes.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / ".cache" / "aot_cuda"
ARCHITECTURES = (80, 86, 89, 90, 100)
TARGET = {90: "sm_90a", 100: "sm_100a"}  # the native build compiles for these feature sets
FLAGS = ["-std=c++17", "-O3", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
TENSOR_CORE = re.compile(r"\b(?:HGMMA|HMMA|UTC\w*MMA)\.[\w.]+")
# Template arguments of kernels whose inner loop must run on tensor cores. MathF32 is IEEE float32: plain FMA.
WANTS_TENSOR_CORE = re.compile(r"conv_\w*kernel<.*Math(F16|BF16|TF32)")

HOPPER_SOURCE, HOPPER = "_sm90a.cu", 90
HOPPER_INSTRUCTIONS = ("HGMMA", "UTMALDG")
# barrier.cluster, ld.shared::cluster (nothing else in these kernels is a generic load), griddepcontrol.wait and
# .launch_dependents, prefetch.global.L2.
CLUSTER_SOURCE = "_sm90.cu"
CLUSTER_INSTRUCTIONS = ("UCGABAR_ARV", "UCGABAR_WAIT", "LD.E.128", "ACQBULK", "PREEXIT", "CCTL.E.PF2")
# Plane convolutions whose blocks load their weights in pairs: copies into both, and the barrier around them.
PAIRS = re.compile(r"conv_plane_kernel<.*, 2>")
PAIR_INSTRUCTIONS = ("UTMALDG.2D.MULTICAST", "UCGABAR_ARV", "UCGABAR_WAIT")
# Kernels whose warpgroups exchange registers begin with exactly so many, or wait for ever (kPlaneRegisters).
EXCHANGE, EXCHANGED = "USETMAXREG", 168
STORE = "UTMASTG"  # of every plane convolution
NAMED = (*HOPPER_INSTRUCTIONS, *CLUSTER_INSTRUCTIONS, *PAIR_INSTRUCTIONS, STORE, EXCHANGE)
WANTED = {HOPPER_SOURCE: HOPPER_INSTRUCTIONS, CLUSTER_SOURCE: CLUSTER_INSTRUCTIONS}
WITHOUT_PRODUCTS = re.compile(r"_(reduce|pack)_kernel")  # in such a source: second kernels, which multiply nothing
MOST_SHARED = 227 * 1024  # of a block, as declared; what a launch asks for besides is asserted beside the kernel


class CannotCompile(Exception):
    pass


def why_not():
    """Why nothing can be compiled here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc not found"
    if cuobjdump() is None:
        return "cuobjdump not found (it comes with the CUDA toolkit and in Triton's wheel)"
    return None


@functools.cache
def cuobjdump():
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def run(*command):
    return subprocess.run(command, capture_output=True, text=True)


@functools.cache
def nvcc_version():
    return re.search(r"V[\d.]+", run("nvcc", "--version").stdout).group(0)


def key(command, dependencies):
    digest = hashlib.sha256(repr([nvcc_version(), command, Path(__file__).read_text()]).encode())
    for path in sorted(dependencies):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:20]


def project_files(depfile):
    names = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return [name for name in names if Path(name).resolve().is_relative_to(CSRC)]


def compile_source(source, arch):
    """Rows of one source for one architecture, from the cache if nothing it includes has changed."""
    target = TARGET.get(arch, f"sm_{arch}")
    command = ["nvcc", *FLAGS, f"-I{CSRC}", f"-arch={target}", str(source)]
    case = str(source.relative_to(CSRC / "cuda"))
    record = CACHE / f"{case.replace('/', '-')}.{target}.json"
    if record.exists():
        kept = json.loads(record.read_text())
        if all(map(os.path.exists, kept["files"])) and kept["key"] == key(command, kept["files"]):
            return kept["rows"]
    with tempfile.TemporaryDirectory() as folder:
        cubin, depfile = Path(folder, "cubin"), Path(folder, "d")
        done = run("nice", "-n", "5", *command, "-o", str(cubin), "-MMD", "-MF", str(depfile))
        if done.returncode != 0:
            raise CannotCompile(f"{case} for {target}:\n{done.stdout}{done.stderr}")
        sass = run(cuobjdump(), "-sass", str(cubin))
        if sass.returncode != 0:
            raise CannotCompile(f"{case} for {target}: cuobjdump: {sass.stderr}")
        found = read(done.stderr, sass.stdout, case, target)
        files = project_files(depfile)
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"key": key(command, files), "files": files, "rows": found}))
    unfinished.replace(record)
    return found


def read(log, sass, source, target):
    """One row per kernel from ptxas -v and the disassembly."""
    code = {}
    for part in sass.split("\t\tFunction : ")[1:]:
        name, body = part.split("\n", 1)
        code[name] = body
    warnings = [line for line in log.splitlines() if re.search(r"warning|\bC75\d\d\b", line)]
    rows = []
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'", 1)[0]
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        stack, stores, loads = map(int, re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())  # fmt: skip
        shared = re.search(r"(\d+) bytes smem", part)
        cores = sorted(set(TENSOR_CORE.findall(code[name])))
        rows.append({
            "kernel": name, "case": source, "arch": target, "registers": registers, "spills": stores + loads,
            "stack": stack, "shared": int(shared.group(1)) if shared else 0, "tensor_core": " ".join(cores),
            "local": len(re.findall(r"\b(?:LDL|STL)\b", code[name])),
            "hopper": [i for i in dict.fromkeys(NAMED) if re.search(rf"\b{re.escape(i)}\b", code[name])],
            "early": before_the_wait(code[name]),
            "warnings": [line for line in warnings if name in line or "'" not in line],
        })  # fmt: skip
    if set(code) != {row["kernel"] for row in rows}:
        raise CannotCompile(f"{source}: ptxas reports {len(rows)} kernels, the disassembly has {len(code)}")
    return demangle(rows)


def before_the_wait(code):
    """What no kernel may do before it has waited for the one ahead (csrc/ptx/cluster.cuh), and this one does: in the order of
    its code, which is not proof but has no reason to differ."""
    head, wait, _ = code.partition("ACQBULK")
    return sorted(set(re.findall(r"\b(?:STG|PREEXIT|LD)\b", head))) if wait else []


def demangle(rows):
    names = "\n".join(row["kernel"] for row in rows)
    readable = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True).stdout.split("\n")
    for row, name in zip(rows, readable, strict=False):
        name = re.sub(r"resnet_fused::(cuda::|ptx::)?|^void |\(anonymous namespace\)::", "", name)
        depth = [0]  # the parameter list is the first parenthesis outside template arguments
        for i, letter in enumerate(name):
            depth.append(depth[-1] + (letter == "<") - (letter == ">"))
            if letter == "(" and depth[-1] == 0:
                name = name[:i]
                break
        row["kernel"] = name
    return rows


def faults(row):
    if row["warnings"]:
        yield row["warnings"][0]
    if row["spills"]:
        yield f"{row['spills']} bytes spilled"
    if row["stack"]:
        yield f"stack frame of {row['stack']} bytes"
    if WANTS_TENSOR_CORE.search(row["kernel"]) and not row["tensor_core"]:
        yield "no tensor-core instruction"
    if row["local"]:
        yield f"{row['local']} accesses of local memory"
    if row["early"]:
        yield f"{row['early'][0]} before ACQBULK"
    if row["shared"] > MOST_SHARED:
        yield f"{row['shared']} bytes of shared memory, more than {MOST_SHARED}"
    if EXCHANGE in row["hopper"] and row["registers"] != EXCHANGED:
        yield f"{row['registers']} registers, not {EXCHANGED}: its exchange of registers would wait for ever"
    own = set(PAIR_INSTRUCTIONS if PAIRS.search(row["kernel"]) else ()) | (
        {STORE, EXCHANGE} if "conv_plane_" in row["kernel"] else set()
    )
    for end, wanted in WANTED.items():
        if row["case"].endswith(end) and not WITHOUT_PRODUCTS.search(row["kernel"]):
            for missing in sorted((set(wanted) | own) - set(row["hopper"])):
                yield f"no {missing}"


def _compiled_for(source, arch):
    if source.name.endswith(HOPPER_SOURCE):
        return arch == HOPPER
    return arch >= HOPPER or not source.name.endswith(CLUSTER_SOURCE)


def rows(archs=ARCHITECTURES, only=""):
    """One dict per kernel and architecture. Raises CannotCompile."""
    if (why := why_not()) is not None:
        raise CannotCompile(why)
    sources = [s for s in sorted(CSRC.glob("cuda/**/*.cu")) if only in str(s.relative_to(CSRC))]
    jobs = [(s, arch) for arch in archs for s in sources if _compiled_for(s, arch)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for found in pool.map(lambda job: compile_source(*job), jobs) for row in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--only", default="", help="compile the sources whose path in csrc/ contains this")
    options = parser.parse_args()
    try:
        table = rows(options.arch, options.only)
    except CannotCompile as why:
        sys.exit(f"aot_cuda: {why}")
    if not table:
        sys.exit(f"aot_cuda: no source with {options.only!r} in its name is compiled for {options.arch}")
    columns = [c for c in table[0] if c not in ("warnings", "local", "hopper", "early")]
    widths = {c: max(len(c), *(len(str(row[c])) for row in table)) for c in columns}
    print("  ".join(c.ljust(width) for c, width in widths.items()))
    failed = 0
    for row in table:
        wrong = list(faults(row))
        failed += bool(wrong)
        print("  ".join(str(row[c]).ljust(width) for c, width in widths.items()), *wrong)
    print(f"nvcc {nvcc_version()}: {len(table)} kernels compiled, {failed} with faults (ahead of time, no GPU)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
