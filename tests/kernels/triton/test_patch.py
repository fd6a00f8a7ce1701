"""The schedule of the patch convolutions: what a patch is, that patches cover the output, what is refused."""

import re

import pytest
import torch

from resnet_fused.kernels.triton import patch
from resnet_fused.kernels.triton.schedule import SMS, cdiv


@pytest.mark.parametrize(
    ("n", "p", "q", "rows", "found"),
    [
        pytest.param(256, 56, 56, 128, (2, 8, 8), id="layer1"),
        pytest.param(1, 56, 56, 64, (1, 8, 8), id="layer1, one image"),
        pytest.param(256, 28, 28, 128, (8, 4, 4), id="layer2"),
        pytest.param(256, 14, 14, 128, (32, 2, 2), id="layer3"),
        pytest.param(256, 7, 7, 128, (128, 1, 1), id="layer4: a plane"),
        pytest.param(1, 28, 28, 128, (1, 4, 32), id="an eighth empty"),
        pytest.param(1, 1, 1, 64, (1, 1, 64), id="one pixel"),
        pytest.param(3, 5, 100, 64, (1, 1, 64), id="wide"),
    ],
)
def test_patches(n, p, q, rows, found):
    assert patch.patch(n, p, q, rows) == found


@pytest.mark.parametrize("n", [1, 3, 64, 256])
@pytest.mark.parametrize(("p", "q", "k"), [(56, 56, 64), (28, 28, 128), (7, 5, 8), (14, 14, 192), (1, 1, 512)])
def test_tiles_cover_pixels_and_channels_and_fit(n, p, q, k):
    for config in ({}, *patch.alternatives(n, p, q, k)):
        made = patch.launch(n, p, q, k, **config)
        assert made.rows in (64, 128, 256) and all(side & (side - 1) == 0 for side in made.patch)
        for size, side, blocks in zip((n, p, q), made.patch, made.blocks, strict=True):
            assert (blocks - 1) * side < size <= blocks * side and side <= 256, "the copy engine's boxes"
        assert made.channel_blocks == cdiv(k, made.block_k)
        assert 1 <= made.programs <= min(made.tiles, 2 * SMS)
        stage = 2 * patch.DEPTH * (made.rows + made.block_k)
        assert made.num_stages * stage + 2 * 2 * 32 * made.rows <= 227 << 10


def test_small_batches_have_smaller_tiles():
    large, small = (patch.launch(n, 56, 56, 64) for n in (256, 1))
    assert (large.rows, large.tiles) == (128, 49 * 128) and (small.rows, small.tiles) == (64, 49)
    assert patch.launch(32, 28, 28, 128).block_k == 128 and patch.launch(1, 28, 28, 128).block_k == 64


@pytest.mark.parametrize(
    ("x", "weight", "dtype", "stride", "groups", "why"),
    [
        pytest.param((1, 64, 56, 56), (64, 64, 3, 3), torch.float16, 1, 1, None, id="taken"),
        pytest.param((1, 72, 7, 5), (8, 72, 3, 3), torch.bfloat16, 1, 1, None, id="ragged-channels"),
        pytest.param((1, 64, 56, 56), (64, 64, 3, 3), torch.float32, 1, 1, "float16 and bfloat16, not float32", id="dtype"),
        pytest.param((1, 68, 8, 8), (64, 68, 3, 3), torch.float16, 1, 1, "input channels in multiples of 8, not 68", id="c"),
        pytest.param((1, 64, 8, 8), (60, 64, 3, 3), torch.float16, 1, 1, "output channels .* not 60", id="k"),
        pytest.param((1, 128, 8, 8), (64, 64, 3, 3), torch.float16, 1, 2, "one group, not 2", id="groups"),
        pytest.param((1, 64, 8, 8), (64, 64, 3, 3), torch.float16, 2, 1, None, id="stride-2"),
        pytest.param((1, 64, 8, 7), (64, 64, 3, 3), torch.float16, 2, 1, "sizes that stride 2 divides, not 7", id="odd"),
        pytest.param((1, 72, 8, 8), (64, 72, 3, 3), torch.float16, 2, 1, "stride 2 .* of 64, not 72", id="stride-2-c"),
        pytest.param((2**20, 64, 64, 64), (64, 64, 3, 3), torch.float16, 1, 1, "in 32 bits", id="many"),
    ],
)  # fmt: skip
def test_what_is_refused(x, weight, dtype, stride, groups, why):
    found = patch.refusal(x, weight, dtype, (stride, stride), groups)
    assert found is None if why is None else re.search(why, found)


@pytest.mark.parametrize(
    ("n", "size", "channels", "kernel", "worth"),
    [
        pytest.param(256, 56, 64, 3, True, id="layer1"),
        pytest.param(1, 56, 64, 3, True, id="49-tiles"),
        pytest.param(1, 28, 128, 3, False, id="28-tiles"),
        pytest.param(256, 56, 64, 1, False, id="1x1"),
        pytest.param(32, 7, 512, 3, True, id="seven-eighths"),
        pytest.param(1, 7, 512, 3, False, id="one-small-image"),
    ],
)
def test_what_suits(n, size, channels, kernel, worth):
    x, weight = (n, channels, size, size), (channels, channels, kernel, kernel)
    assert patch.suits(x, weight, (1, 1)) is worth
