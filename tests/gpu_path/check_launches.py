"""The table of launches (docs/results/launches.md): no number of ours rises unnoticed, and the page has these numbers."""

import json

import pytest
import torch

from benchmarks.host import launches


@pytest.mark.parametrize("case", launches.CASES, ids=str)
def test_no_number_has_risen(case):
    torch.backends.cudnn.allow_tf32 = True
    before = json.loads(launches.FILE.read_text())[str(case)]
    for mode, both in launches.counted(case).items():
        ours = both["ours"]
        risen = {n: (before[mode]["ours"][n], ours[n]) for n in launches.NUMBERS if ours[n] > before[mode]["ours"][n]}
        assert not risen, f"{mode}: {risen}; where that is right, run python -m benchmarks.host.launches"
        # With contiguous weights a step copies each of them three times, more than fusing saves in a small batch.
        assert ours["launches"] < both["eager"]["launches"] or (mode == "step" and not case.channels_last)


def test_the_page_is_that_of_the_file():
    text = launches.PAGE.read_text()
    assert all(f"| {case} | {mode} |" in text for case in launches.CASES for mode in launches.MODES)
