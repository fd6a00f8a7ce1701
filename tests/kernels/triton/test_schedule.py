"""schedule.py: every element is covered exactly once, and nothing asks for more than a GPU has."""

import itertools

import pytest
import torch

from resnet_fused.kernels.triton import schedule

CHANNELS = (1, 3, 64, 65, 96, 100, 512, 2048)
POSITIONS = (1, 2, 49, 127, 3136)
INNER = (1, 2, 49, 196, 784, 3136)


def is_power_of_two(n):
    return n > 0 and n & (n - 1) == 0


def intervals(count, block, size):
    """Lengths of the pieces [i * block, (i + 1) * block) cut off at `size`."""
    return [min(size, (i + 1) * block) - i * block for i in range(count)]


@pytest.mark.parametrize("size", [1, 7, 128, 4096, 4097, 2**31, 2**33 + 5])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_flat_covers_every_element_once(size, itemsize):
    config = schedule.flat(size, itemsize)
    assert is_power_of_two(config.block)
    (programs,) = config.grid
    assert (programs - 1) * config.block < size <= programs * config.block
    assert programs < 2**31


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("make", [schedule.elementwise, schedule.reduction])
def test_tiles_cover_every_position_and_channel_once(make, inner, channels):
    for outer in POSITIONS:
        tiles = make(outer, channels, inner)
        assert is_power_of_two(tiles.block_r) and is_power_of_two(tiles.block_c)
        assert tiles.block_r * tiles.block_c <= 4096
        assert tiles.grid == (tiles.slices * tiles.channel_blocks,)
        assert all(length > 0 for length in intervals(tiles.channel_blocks, tiles.block_c, channels))
        # the slices share out the position tiles, none is left without one
        per_slice = intervals(tiles.slices, tiles.steps, tiles.position_tiles)
        assert all(length > 0 for length in per_slice) and sum(per_slice) == tiles.position_tiles
        # and the position tiles share out the positions
        extent = outer if tiles.channels_last else inner
        planes = 1 if tiles.channels_last else outer
        per_plane, rest = divmod(tiles.position_tiles, planes)
        assert rest == 0 and all(length > 0 for length in intervals(per_plane, tiles.block_r, extent))
        assert sum(intervals(per_plane, tiles.block_r, extent)) * planes == outer * inner


def test_an_elementwise_program_takes_one_tile():
    assert schedule.elementwise(256 * 56 * 56, 64, 1).steps == 1


def test_a_reduction_has_a_bounded_number_of_partials():
    for outer, channels, inner in itertools.product(POSITIONS, CHANNELS, INNER):
        tiles = schedule.reduction(outer, channels, inner)
        assert tiles.slices * tiles.channel_blocks <= max(8 * schedule.SMS, tiles.channel_blocks)


def test_more_than_2_31_elements():
    tiles = schedule.elementwise(4096 * 112 * 112, 64, 1)
    assert tiles.grid[0] * tiles.block_r * tiles.block_c >= 4096 * 112 * 112 * 64 > 2**31
    assert tiles.grid[0] < 2**31


@pytest.mark.parametrize("channels", CHANNELS)
def test_merge_covers_every_channel_once(channels):
    config = schedule.merge(channels)
    assert is_power_of_two(config.block_s) and is_power_of_two(config.block_c)
    assert all(length > 0 for length in intervals(config.grid[0], config.block_c, channels))
    assert sum(intervals(config.grid[0], config.block_c, channels)) == channels


# (positions, k, c, taps, groups)
CONVS = [
    *itertools.product((1, 49, 3136, 12544, 802816), (10, 64, 65, 512), (3, 16, 65, 512), (1, 9), (1,)),
    (12544, 64, 3, 49, 1),
    (3136, 1, 1, 9, 64),
    (3136, 4, 4, 9, 32),
]
PRECISIONS = [
    pytest.param(2, "ieee", id="half"),
    pytest.param(4, "tf32", id="tf32"),
    pytest.param(4, "ieee", id="fp32"),
]


@pytest.mark.parametrize(("itemsize", "precision"), PRECISIONS)
def test_conv_covers_output_and_depth_once(itemsize, precision):
    for m, k, c, taps, groups in CONVS:
        config = schedule.conv(m, k, c, taps, groups, itemsize, precision)
        assert all(map(is_power_of_two, (config.block_m, config.block_k, config.block_d)))
        assert config.block_d >= 16 and config.block_k >= 16  # the least that tl.dot takes
        rows, columns = -(-m // config.block_m), -(-k // config.block_k)
        assert config.grid == (rows * columns, groups, config.splits)
        assert sum(intervals(rows, config.block_m, m)) == m and sum(intervals(columns, config.block_k, k)) == k
        shares = intervals(config.splits, config.iterations_per_split, config.iterations)
        assert all(share > 0 for share in shares) and sum(shares) == config.iterations
        covered = config.iterations * config.block_d
        assert covered >= taps * c
        assert covered < taps * c + (config.block_d if config.flat else taps * config.block_d)


@pytest.mark.parametrize(("itemsize", "precision"), PRECISIONS)
def test_conv_stages_fit_into_shared_memory(itemsize, precision):
    """Upper bound: every stage holds both operand tiles. The limit of sm_86 and sm_89 is 99 KiB, of sm_90 227 KiB."""
    for m, k, c, taps, groups in CONVS:
        config = schedule.conv(m, k, c, taps, groups, itemsize, precision)
        operands = (config.block_m + config.block_k) * config.block_d * itemsize * config.num_stages
        assert operands <= 99 * 1024
        assert 2 * operands <= 227 * 1024  # so that two blocks share an SM of sm_90


def test_small_convolutions_are_split_and_large_ones_are_not():
    def splits(*arguments):
        return schedule.conv(*arguments, 2, "ieee").splits

    assert splits(49, 512, 512, 9, 1) > 8  # layer4 at batch 1: 8 tiles for 132 SMs
    assert splits(256 * 49, 512, 512, 9, 1) == 1
    assert splits(49, 512, 16, 1, 1) == 1  # one iteration cannot be shared


def test_offsets_go_wide_before_they_overflow():
    limit = 2**31
    assert not schedule.wide_offsets(128, 3136, 64 * 3136, 512 * 512 * 9)
    assert schedule.wide_offsets(128, 3136, limit // 3 + 1, 1)
    assert schedule.wide_offsets(128, 1, limit // 131 + 1, 1)
    assert schedule.wide_offsets(128, 3136, 1, limit)


def test_fp32_precision_follows_every_way_torch_has_to_say_it():
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    try:
        cudnn.allow_tf32 = True
        assert schedule.fp32_precision() == "tf32"
        cudnn.allow_tf32 = False
        assert schedule.fp32_precision() == "ieee"
        cudnn.conv.fp32_precision = "tf32"
        assert schedule.fp32_precision() == "tf32"
        cudnn.conv.fp32_precision = "ieee"
        cudnn.rnn.fp32_precision = "tf32"  # reading cudnn.allow_tf32 raises now
        assert schedule.fp32_precision() == "ieee"
    finally:
        cudnn.rnn.fp32_precision = before
        cudnn.conv.fp32_precision = before
