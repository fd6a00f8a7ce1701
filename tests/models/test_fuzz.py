"""Random networks and inputs, fused and eager against float64: 100 in `make test`, 2,000 in `make fuzz`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_case import Case, check, from_json
from hypothesis import HealthCheck, Verbosity, assume, given, settings
from hypothesis import strategies as st

from resnet_fused.modules import evaluation as blocks
from resnet_fused.ops import training

indices = st.lists(st.integers(0, 30), max_size=3).map(tuple)
widths = st.sampled_from([4, 7, 8, 16, 20])
stages = st.lists(st.tuples(widths, st.integers(1, 2), st.sampled_from([1, 2])), min_size=1, max_size=3).map(tuple)
cases = st.builds(
    Case,
    holder=st.sampled_from(["ours", "converted", "by plan"]),
    block=st.sampled_from(["BasicBlock", "Bottleneck"]),
    stages=stages,
    stem=st.tuples(widths, st.sampled_from([3, 7]), st.sampled_from([1, 2])),
    groups=st.sampled_from([1, 1, 2, 4]),
    zero_pad=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(6, 20), st.integers(6, 20)),
    dtype=st.sampled_from(["float32", "float32", "bfloat16", "float16"]),
    autocast=st.booleans(),
    channels_last=st.tuples(st.booleans(), st.booleans()),
    training=st.booleans(),
    eval_norms=indices,
    frozen=indices,
    hooked=indices,
    norm=st.tuples(st.sampled_from([1e-5, 1e-3, 0.1]), st.sampled_from([0.1, 0.9, None]), st.booleans()),
    offset=st.sampled_from([0.0, 0.0, 3.0]),
    seed=st.integers(0, 1000),
)


def test_fuzz(request):
    """Same draws on every run of `make test`; `make fuzz` draws new ones; failures shrink to one line that repeats them."""
    many = request.config.getoption("--cases")

    @settings(
        max_examples=many or 100, derandomize=many is None, deadline=None, database=None,
        verbosity=Verbosity.normal, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def run(case):
        if case.block == "Bottleneck":
            assume(all(width % case.groups == 0 for width, _, _ in case.stages))
        # Half types in small maps are the worst conditioned: their error grows by two orders in a backward pass.
        assume(case.values_per_channel() >= (16 if case.dtype == "float32" and not case.autocast else 48))
        check(case)

    run()


def test_a_case_can_be_repeated_from_the_printed_line():
    case = Case(holder="converted", stages=((8, 1, 2), (4, 2, 1)), hooked=(3,), norm=(0.1, None, True))
    text = case.line().partition("'")[2].rstrip("'")
    assert from_json(text) == case
    command, env = [sys.executable, "tests/support/fuzz_case.py", text], os.environ | {"PYTHONPATH": "."}
    result = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], env=env, capture_output=True, text=True)
    assert result.stdout == "fused is as right as eager\n", result.stderr


# What goes wrong, where, and the plainest case that must see it.
MISTAKES = {
    "eps of a plan": (blocks, "_statistics", lambda facts: facts | {"eps": facts["eps"] + 1e-4}, "by plan"),
    "momentum of a plan": (blocks, "_statistics", lambda facts: facts | {"momentum": 0.1001}, "by plan"),
    "eps of a block": (training, "Unit", lambda unit: unit._replace(eps=unit.eps + 1e-4), "ours"),
    "bias of a block": (training, "Unit", lambda unit: unit._replace(bn_bias=unit.bn_bias + 1e-4), "converted"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_fuzzer_sees_mistakes(monkeypatch, mistake):
    """Each of them is small and in one place."""
    module, name, wrong, holder = MISTAKES[mistake]
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: wrong(real(*args)))
    with pytest.raises(AssertionError, match=r"of the error budget\npython tests/support/fuzz_case.py '\{"):
        check(Case(shape=(2, 12, 12), holder=holder))
