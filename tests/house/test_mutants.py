"""A sample of tests/emulator/mutate.py, which removes every synchronisation statement in turn (`make mutants`)."""

import pytest
from emulator import build, mutate

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


@pytest.fixture(scope="module")
def mutants():
    return mutate.mutants()


def test_all_kernels_are_mutated(mutants):
    files = {m.file for m in mutants}
    assert files >= {
        "base/walk.cuh",
        "base/partial.cuh",
        "norms/bn_stats.cuh",
        "conv/mainloop.cuh",
        "conv/pool.cuh",
        "hopper/plane/plane.cuh",
        "hopper/strip/strip.cuh",
        "conv/cluster.cuh",
    }
    assert any("cp_async_wait" in m.statement for m in mutants)
    assert set(mutate.REDUNDANT) <= {(m.file, m.number) for m in mutants}


SLOW = pytest.mark.slow("as the first two, in other kernels")
MUTANTS = {
    "constants-before-use": ("base/walk.cuh", "sync_threads", "race: reads|never written"),
    "copy-before-use": ("conv/mainloop.cuh", "cp_async_wait", "has not been waited for"),
    "products-before-give-back": ("hopper/plane/plane.cuh", "wgmma_wait<kPixels>", "a product is still reading"),
    "weights-before-use": ("hopper/strip/strip.cuh", "mbar_wait(memory.weights_full", "race: reads"),
    "a-column-off": ("hopper/strip/strip.cuh", "place.column - 1", "of one rounding"),
    "another-slot": ("hopper/strip/strip.cuh", "memory.line(i), x", "never written|race: reads"),
    "wait-for-the-kernel-before": ("conv/cluster.cuh", "ptx::grid_wait();", "before grid_wait"),
    "writes-need-a-release": ("conv/cluster.cuh", "store(smem, acc);", "race: reads"),
    "leaving-too-early": ("conv/cluster.cuh", "// no block may leave", "leave"),
}


@pytest.mark.parametrize(
    ("file", "statement", "reason"),
    [pytest.param(*m, id=name, marks=SLOW if i > 1 else ()) for i, (name, m) in enumerate(MUTANTS.items())],
)
def test_a_removed_statement_is_noticed(mutants, file, statement, reason):
    mutant = next(m for m in mutants if m.file == file and statement in m.statement)
    noticed = mutate.how_noticed(mutant)
    assert noticed is not None and any(r in noticed for r in reason.split("|")), noticed
