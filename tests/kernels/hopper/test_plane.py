"""Which convolutions the plane kernel takes, which are worth a measurement, and what it refuses inside of a capture."""

import re

import pytest
import torch

from resnet_fused.kernels.hopper.plane import schedule as plane
from resnet_fused.kernels.shapes import Convolution


@pytest.mark.parametrize(
    ("x", "weight", "dtype", "groups", "why"),
    [
        pytest.param((64, 64, 7, 7), (128, 64, 3, 3), torch.float16, 1, None, id="taken"),
        pytest.param((64, 65, 7, 7), (65, 65, 3, 3), torch.float16, 1, "input channels .* not 65", id="c"),
        pytest.param((64, 64, 7, 7), (160, 64, 3, 3), torch.bfloat16, 1, "output channels .* not 160", id="k"),
        pytest.param((64, 64, 7, 7), (64, 64, 3, 3), torch.float16, 1, "channels from 128 on, not 64", id="few"),
        pytest.param((64, 64, 7, 7), (128, 64, 3, 3), torch.float32, 1, "not float32", id="dtype"),
        pytest.param((64, 128, 7, 7), (128, 64, 3, 3), torch.float16, 2, "one group, not 2", id="groups"),
        pytest.param((64, 64, 8192, 8192), (128, 64, 3, 3), torch.float16, 1, "32 bits", id="huge"),
    ],
)
def test_what_is_refused(x, weight, dtype, groups, why):
    found = plane.refusal("conv_bn_relu", Convolution(x, weight, dtype, (1, 1), (1, 1), (1, 1), groups))
    assert found is None if why is None else re.search(why, found)


def test_what_suits():
    def suits(images, kernel):
        where = (1, 1), (1, 1), (1, 1), 1
        convolution = Convolution((images, 64, 7, 7), (64, 64, kernel, kernel), torch.float16, *where)
        return plane.suits("conv_bn_relu", convolution)

    assert suits(64, 3) and not suits(63, 3) and not suits(64, 1)


def test_a_table_cannot_be_copied_inside_of_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run it once before the graph's capture"):
        plane.refuse_capture(torch.device("cuda"))
    plane.refuse_capture(torch.device("cpu"))
