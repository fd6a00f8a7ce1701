"""Removes each synchronisation statement of the CUDA kernels in turn, also replaces a few by wrong ones, and demands
that a test fails for each.

    python tests/emulator/mutate.py [--only TEXT] [--list]

Where no test fails, the statement is redundant or the tests miss it. The exit status is then 1, unless REDUNDANT lists
the statement.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from emulator import build

STATEMENT = re.compile(
    r"ptx::(sync_threads|sync_warp|bar_sync|bar_arrive|cp_async_wait<[^>]*>|cp_async_commit"
    r"|cluster_arrive|cluster_arrive_reads|cluster_wait|mbar_arrive_cluster|grid_wait"
    r"|mbar_wait|mbar_arrive|mbar_arrive_expect|mbar_init_fence|wgmma_fence|wgmma_commit|wgmma_wait<[^>]*>|wgmma_finish"
    r"|fence_async|store_commit|store_wait_read"
    r")\([^;]*\);"
)
PLANE, STRIP, CLUSTER = "hopper/plane/plane.cuh", "hopper/strip/strip.cuh", "conv/cluster.cuh"
# (file, a text that occurs in it once, the replacement)
WRONG = (
    (PLANE, "shared.plane_empty(turn.slot), turn.parity ^ 1", "shared.plane_empty(turn.slot), turn.parity"),
    (PLANE, "shared.tap_empty(turn.slot), turn.parity ^ 1", "shared.tap_empty(turn.slot), 1"),
    (PLANE, "shared.plane_full(plane.slot), plane.parity", "shared.plane_full(plane.slot), 0"),
    (PLANE, "tap.parity);\n#pragma unroll", "tap.parity ^ 1);\n#pragma unroll"),
    (PLANE, "shared.plane_full(slot), kPlaneBytes", "shared.plane_full(slot), kPlaneBytes / 2"),
    (PLANE, "before.give_back<kCluster>(shared);\n        before = now", "now.give_back<kCluster>(shared)"),
    (PLANE, "wgmma_wait<kPixels>", "wgmma_wait<kPixels + 1>"),
    (PLANE, "kPlaneConsumers = 8", "kPlaneConsumers = 7"),
    (PLANE, "kPlaneConsumers * kCluster", "kPlaneConsumers"),
    (PLANE, "kBothBlocks = 3", "kBothBlocks = 1"),
    (PLANE, "1 - plane_rank<kCluster>()", "plane_rank<kCluster>()"),
    (PLANE, "at.first + i * kPlaneChannels", "at.first + (1 - i) * kPlaneChannels"),
    (PLANE, "at.first + part * kPlaneChannels", "at.first + (1 - part) * kPlaneChannels"),
    (PLANE, "    if (group == 1) others(0);", ""),
    ("hopper/plane/store.cuh", "16 * (piece ^ line % 8)", "16 * piece"),
    (PLANE, "at.first + rank *", "at.first + (1 - rank) *"),
    (PLANE, "shared.tap_full(slot), kTapBytes", "shared.tap_full(slot), kTapBytes / kCluster"),
    (
        PLANE,
        "    ptx::cluster_arrive();\n    ptx::cluster_wait();\n  }\n  if",
        "    ptx::sync_threads();\n  }\n  if",
    ),
    (PLANE, "    ptx::cluster_arrive();\n    ptx::cluster_wait();\n  }\n}", "  }\n}"),
    (CLUSTER, "ptx::cluster_arrive();\n  ptx::cluster_wait();\n  finish", "ptx::sync_threads();\n  finish"),
    (
        CLUSTER,
        "ptx::cluster_arrive_reads();  // no block may leave while another reads its memory\n  ptx::cluster_wait();",
        "",
    ),
    (CLUSTER, "store(smem, acc);\n  ptx::cluster_arrive();", "store(smem, acc);\n  ptx::cluster_arrive_reads();"),
    (CLUSTER, "  ptx::grid_wait();", "  ptx::grid_trigger();\n  ptx::grid_wait();"),
    (CLUSTER, "loader.weights_of(i, i)", "loader.next(i)"),
    (CLUSTER, "loader.weights_of(i, i)", "loader.weights_of(0, i)"),
    (CLUSTER, "load_residual<Element, false>", "load_residual<Element>"),
    (CLUSTER, "cluster_address(smem, slice)", "cluster_address(smem, args.splits - 1 - slice)"),
    (CLUSTER, "row < share.end", "row + 1 < share.end"),
    (CLUSTER, "  if (early_weights) {\n#pragma unroll", "  if (true) {\n#pragma unroll"),
    (STRIP, "memory.line(i), x,", "memory.line(i + 1), x,"),
    (STRIP, "memory.line(row + r)", "memory.line(row + r + 1)"),
    (STRIP, "place.column - 1,", "place.column,"),
    (STRIP, "s * kStripPixelBytes", "(s + 1) * kStripPixelBytes"),
    (STRIP, "gradient ? kStripTaps - 1 - i : i", "gradient ? i : kStripTaps - 1 - i"),
    (STRIP, "4 * kStripConsumers);", "4 * kStripConsumers - 1);"),
    (STRIP, "4 * kStripConsumers);", "4 * kStripConsumers + 1);"),
    (STRIP, "released < row + kStripConsumers", "released < row + kStripConsumers + 1"),
    (STRIP, "strip_parity(i - kStripSlots)", "strip_parity(i)"),
    (STRIP, "base + kStripStaging + consumer", "base + kStripStaging - kStripLineBytes + consumer"),
    (STRIP, "lane / 8 % 2) ^ lane % 8", "lane / 8 % 2) ^ lane / 8"),
)
# (file, number of the statement in it): why the statement stays although no test can notice its removal.
REDUNDANT = {
    (PLANE, 17): "ptxas wants a fence on the way without products too (C7519); there is nothing to order",
    (PLANE, 32): "the last barrier takes whole warps; the emulator brings their lanes together itself",
}
# {source in csrc/cuda: its tests}. A header is mutated in one source only: in the source of the same name, otherwise in
# the first of these that includes it.
TESTS = {
    "norms/bn_relu": "test_cuda_emulated.py",
    "norms/bn_stats": "test_cuda_emulated.py",
    "norms/bn_relu_backward": "test_cuda_emulated.py",
    "conv/instances/conv_bn_relu_f16": "test_conv_emulated.py",
    "conv/instances/stats_f16": "test_conv_stats_emulated.py",
    "conv/pool": "test_conv_pool_emulated.py",
    "head/pool_linear": "test_pool_linear.py",
    "hopper/plane/plane_sm90a": "test_plane_emulated.py",
    "hopper/strip/strip_sm90a": "test_strip_emulated.py",
    "conv/instances/cluster_f16_sm90": "test_conv_cluster.py",
}


class Mutant(NamedTuple):
    file: str  # in csrc/cuda
    number: int  # number of the statement in the file
    line: int
    statement: str
    source: str  # the source that is compiled with the mutated file
    instead: str = ";"

    def __str__(self):
        instead = "" if self.instead == ";" else f" -> {self.instead}"
        return f"{self.file}:{self.line} {self.statement}{instead} in {self.source}"


def source_of(stem, root=build.ROOT):
    return root / "csrc" / "cuda" / f"{stem}.cu"


def mutants():
    """Every synchronisation statement, and WRONG. The library is built first, because it records which source includes
    which header."""
    build.library()
    included = {}
    for stem in TESTS:
        source = source_of(stem)
        for path in build.dependencies(build.folder_of() / f"{build.name_of(source)}.d"):
            header = Path(path).resolve()
            if header not in included or source.stem.startswith(header.stem):
                included[header] = stem
    found = []
    for path in sorted(build.CSRC.glob("cuda/**/*.cuh")):
        file, text = str(path.relative_to(build.CSRC / "cuda")), path.read_text()
        for number, match in enumerate(STATEMENT.finditer(text)):
            line = text.count("\n", 0, match.start()) + 1
            if path not in included:
                raise RuntimeError(f"{file} synchronises, but none of {', '.join(TESTS)} includes it")
            found.append(Mutant(file, number, line, match.group(0), included[path]))
    for number, (file, old, new) in enumerate(WRONG):
        path = build.CSRC / "cuda" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise RuntimeError(f"{file} has {old!r} {text.count(old)} times: update WRONG")
        found.append(Mutant(file, -1 - number, text.count("\n", 0, text.index(old)) + 1, old, included[path], new))
    return found


def mutated_object(mutant, folder):
    for part in ("csrc", "tests/emulator"):
        shutil.copytree(build.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "csrc" / "cuda" / mutant.file
    text = path.read_text()
    found = [match.start() for match in STATEMENT.finditer(text)]
    start = text.index(mutant.statement) if mutant.number < 0 else found[mutant.number]
    path.write_text(text[:start] + mutant.instead + text[start + len(mutant.statement) :])
    flags = build.kernel_flags(root=folder)
    return build.compile_object(source_of(mutant.source, folder), flags, folder / "objects")


def run_tests(source, environment=None):
    """The first failure of the tests of `source`, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]
    (tests,) = (build.ROOT / "tests").rglob(TESTS[source])
    done = subprocess.run(
        [*command, str(tests)], env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=1800
    )
    if done.returncode == 0:
        return None
    # Status 1 means that a test failed. A negative status is a crash of the mutant. Any other status is an error of the
    # run itself.
    if done.returncode > 1:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    reasons = re.findall(r"(?:RuntimeError|AssertionError|Fault|E  ).*", done.stdout)
    return reasons[0].strip() if reasons else f"exit status {done.returncode}"


def how_noticed(mutant):
    """The tests' message about the mutant, or None."""
    with tempfile.TemporaryDirectory(prefix="mutant") as name:
        folder = Path(name)
        replaced = {str(source_of(mutant.source)): str(mutated_object(mutant, folder))}
        return run_tests(mutant.source, {"EMU_OBJECTS": json.dumps(replaced), "EMU_LINKED": str(folder / "linked")})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="mutants with this text in their description")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [m for m in mutants() if options.only in str(m)]
    if options.list or not chosen:
        print(*chosen, sep="\n")
        return 0 if chosen else 1
    for source in sorted({m.source for m in chosen}):
        if (failure := run_tests(source)) is not None:
            sys.exit(f"{TESTS[source]} fails without any mutation: {failure}")
    wrong = 0
    for mutant in chosen:
        noticed, excuse = how_noticed(mutant), REDUNDANT.get((mutant.file, mutant.number))
        wrong += (noticed is None) == (excuse is None)
        verdict = f"noticed: {noticed[:160]}" if noticed else "NOT NOTICED"
        print(f"{mutant}\n    {verdict}{f' (redundant: {excuse})' if excuse else ''}", flush=True)
    print(f"{len(chosen)} mutants, {wrong} unexpected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
