"""Removes each synchronisation statement of the CUDA kernels in turn, makes a few that are wrong instead of absent, and
demands that a test notices.

    python tests/emulator/mutate.py [--only TEXT] [--list]

A statement whose removal goes unnoticed is redundant, or the tests are blind: exit status 1 unless it is in REDUNDANT.
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
    r"|cluster_arrive|cluster_wait|mbar_arrive_cluster|grid_wait"
    r"|mbar_wait|mbar_arrive|mbar_arrive_expect|mbar_init_fence|wgmma_fence|wgmma_commit|wgmma_wait<[^>]*>|wgmma_finish"
    r"|fence_async|store_commit|store_wait_read"
    r")\([^;]*\);"
)
# (file, what stands there once, what takes its place)
WRONG = (
    ("conv_plane.cuh", "shared.plane_empty(turn.slot), turn.parity ^ 1", "shared.plane_empty(turn.slot), turn.parity"),
    ("conv_plane.cuh", "shared.tap_empty(turn.slot), turn.parity ^ 1", "shared.tap_empty(turn.slot), 1"),
    ("conv_plane.cuh", "shared.plane_full(plane.slot), plane.parity", "shared.plane_full(plane.slot), 0"),
    ("conv_plane.cuh", "tap.parity);\n#pragma unroll", "tap.parity ^ 1);\n#pragma unroll"),
    ("conv_plane.cuh", "shared.plane_full(slot), kPlaneBytes", "shared.plane_full(slot), kPlaneBytes / 2"),
    ("conv_plane.cuh", "before.give_back<kCluster>(shared);\n        before = now", "now.give_back<kCluster>(shared)"),
    ("conv_plane.cuh", "wgmma_wait<kPixels>", "wgmma_wait<kPixels + 1>"),
    ("conv_plane.cuh", "kPlaneConsumers = 8", "kPlaneConsumers = 7"),
    ("conv_plane.cuh", "kPlaneConsumers * kCluster", "kPlaneConsumers"),
    ("conv_plane.cuh", "kBothBlocks = 3", "kBothBlocks = 1"),
    ("conv_plane.cuh", "1 - plane_rank<kCluster>()", "plane_rank<kCluster>()"),
    ("conv_plane.cuh", "at.first + i * kPlaneChannels", "at.first + (1 - i) * kPlaneChannels"),
    ("conv_plane.cuh", "at.first + part * kPlaneChannels", "at.first + (1 - part) * kPlaneChannels"),
    ("conv_plane.cuh", "    if (group == 1) others(0);", ""),
    ("conv_plane_store.cuh", "16 * (piece ^ line % 8)", "16 * piece"),
    ("conv_plane.cuh", "at.first + rank *", "at.first + (1 - rank) *"),
    ("conv_plane.cuh", "shared.tap_full(slot), kTapBytes", "shared.tap_full(slot), kTapBytes / kCluster"),
    (
        "conv_plane.cuh",
        "    ptx::cluster_arrive();\n    ptx::cluster_wait();\n  }\n  if",
        "    ptx::sync_threads();\n  }\n  if",
    ),
    ("conv_plane.cuh", "    ptx::cluster_arrive();\n    ptx::cluster_wait();\n  }\n}", "  }\n}"),
    ("conv_cluster.cuh", "ptx::cluster_arrive();\n  ptx::cluster_wait();\n  finish", "ptx::sync_threads();\n  finish"),
    (
        "conv_cluster.cuh",
        "ptx::cluster_arrive();  // no block may leave while another reads its memory\n  ptx::cluster_wait();",
        "",
    ),
    ("conv_cluster.cuh", "  ptx::grid_wait();", "  ptx::grid_trigger();\n  ptx::grid_wait();"),
    ("conv_cluster.cuh", "loader.weights_of(i, i)", "loader.next(i)"),
    ("conv_cluster.cuh", "loader.weights_of(i, i)", "loader.weights_of(0, i)"),
    ("conv_cluster.cuh", "load_residual<Element, false>", "load_residual<Element>"),
    ("conv_cluster.cuh", "cluster_address(smem, slice)", "cluster_address(smem, args.splits - 1 - slice)"),
    ("conv_cluster.cuh", "row < share.end", "row + 1 < share.end"),
    ("conv_cluster.cuh", "  if (early_weights) {\n#pragma unroll", "  if (true) {\n#pragma unroll"),
    ("conv_strip.cuh", "memory.line(i), x,", "memory.line(i + 1), x,"),
    ("conv_strip.cuh", "memory.line(row + r)", "memory.line(row + r + 1)"),
    ("conv_strip.cuh", "place.column - 1,", "place.column,"),
    ("conv_strip.cuh", "s * kStripPixelBytes", "(s + 1) * kStripPixelBytes"),
    ("conv_strip.cuh", "gradient ? kStripTaps - 1 - i : i", "gradient ? i : kStripTaps - 1 - i"),
    ("conv_strip.cuh", "4 * kStripConsumers);", "4 * kStripConsumers - 1);"),
    ("conv_strip.cuh", "4 * kStripConsumers);", "4 * kStripConsumers + 1);"),
    ("conv_strip.cuh", "released < row + kStripConsumers", "released < row + kStripConsumers + 1"),
    ("conv_strip.cuh", "strip_parity(i - kStripSlots)", "strip_parity(i)"),
    ("conv_strip.cuh", "base + kStripStaging + consumer", "base + kStripStaging - kStripLineBytes + consumer"),
    ("conv_strip.cuh", "lane / 8 % 2) ^ lane % 8", "lane / 8 % 2) ^ lane / 8"),
)
# (file, number of the statement in it): why it stays although no test can notice its removal.
REDUNDANT = {
    ("conv_plane.cuh", 17): "ptxas wants a fence on the way without products too (C7519); there is nothing to order",
    ("conv_plane.cuh", 32): "the last barrier takes whole warps; the emulator brings their lanes together itself",
}
# A header is mutated in one source only: the one named after it, else the first of these that includes it.
SOURCES = (
    "bn_relu", "bn_stats", "bn_relu_backward", "conv_bn_relu_f16", "conv_stats_f16", "conv_bn_relu_pool", "pool_linear",
    "conv_plane_sm90a", "conv_strip_sm90a", "conv_cluster_f16_sm90",
)  # fmt: skip
TESTS = {
    "bn_relu": "test_cuda_emulated.py",
    "bn_stats": "test_cuda_emulated.py",
    "bn_relu_backward": "test_cuda_emulated.py",
    "conv_bn_relu_f16": "test_conv_emulated.py",
    "conv_stats_f16": "test_conv_stats_emulated.py",
    "conv_bn_relu_pool": "test_conv_pool_emulated.py",
    "pool_linear": "test_pool_linear.py",
    "conv_plane_sm90a": "test_plane_emulated.py",
    "conv_strip_sm90a": "test_strip_emulated.py",
    "conv_cluster_f16_sm90": "test_conv_cluster.py",
}


class Mutant(NamedTuple):
    file: str  # in csrc/cuda
    number: int  # of the statement in the file
    line: int
    statement: str
    source: str  # that is compiled with it
    instead: str = ";"

    def __str__(self):
        instead = "" if self.instead == ";" else f" -> {self.instead}"
        return f"{self.file}:{self.line} {self.statement}{instead} in {self.source}"


def mutants():
    """Every synchronisation statement, and WRONG. Builds the library first, for its record of which source has which header."""
    build.library()
    included = {}
    for stem in SOURCES:
        for path in build.dependencies(build.folder_of() / f"{stem}.d"):
            header = Path(path).resolve()
            if header not in included or stem.startswith(header.stem):
                included[header] = stem
    found = []
    for path in sorted(build.CSRC.glob("cuda/*.cuh")):
        text = path.read_text()
        for number, match in enumerate(STATEMENT.finditer(text)):
            line = text.count("\n", 0, match.start()) + 1
            if path not in included:
                raise RuntimeError(f"{path.name} synchronises, but none of {', '.join(SOURCES)} includes it")
            found.append(Mutant(path.name, number, line, match.group(0), included[path]))
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
    return build.compile_object(folder / "csrc" / "cuda" / f"{mutant.source}.cu", flags, folder / "objects")


def run_tests(source, environment=None):
    """The first failure of the tests of `source`, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]
    (tests,) = (build.ROOT / "tests").rglob(TESTS[source])
    done = subprocess.run(
        [*command, str(tests)], env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=1800
    )
    if done.returncode == 0:
        return None
    # 1: a test failed. Anything else is an error of the run itself; a negative status, a crash of the mutant.
    if done.returncode > 1:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    reasons = re.findall(r"(?:RuntimeError|AssertionError|Fault|E  ).*", done.stdout)
    return reasons[0].strip() if reasons else f"exit status {done.returncode}"


def how_noticed(mutant):
    """What the tests say about the mutant, or None."""
    with tempfile.TemporaryDirectory(prefix="mutant") as name:
        folder = Path(name)
        replaced = {f"{mutant.source}.cu": str(mutated_object(mutant, folder))}
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
