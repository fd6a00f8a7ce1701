"""The schedule of the plane convolutions: every output pixel once, every tap inside of the input once, heaviest first."""

import collections
import math
import re

import pytest
import torch

from resnet_fused.kernels.hopper.plane import schedule as plane


def geometry(size, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)):
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    out = tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sides)
    return plane.Geometry(size, out, kernel, stride, padding, dilation)


GEOMETRIES = [
    pytest.param(geometry((14, 14)), id="14x14"),
    pytest.param(geometry((7, 7)), id="7x7"),
    pytest.param(geometry((14, 14), stride=(2, 2)), id="stride-2"),
    pytest.param(geometry((14, 14), (1, 1), (2, 2), (0, 0)), id="projection"),
    pytest.param(geometry((9, 5), (3, 3), (1, 1), (2, 2), (2, 2)), id="dilation-2"),
    pytest.param(geometry((6, 7), (7, 5), (2, 3), (3, 2)), id="filter-as-large-as-the-map"),
    pytest.param(geometry((4, 5), (3, 2), (1, 2), (0, 1)), id="no-square"),
    pytest.param(geometry((2, 2), (1, 1), (1, 1), (3, 3)), id="pixels-without-taps"),
    pytest.param(geometry((1, 1)), id="1x1"),
    pytest.param(geometry((3, 3), (2, 2), (1, 1), (4, 4), (3, 3)), id="dilation-jumps-over-the-map"),
]


def taps(g):
    """{(p, q): the taps inside of the input}, by the definition of a convolution."""
    found = {}
    for p in range(g.out[0]):
        for q in range(g.out[1]):
            at = [(p * g.stride[0] - g.padding[0] + r * g.dilation[0], q * g.stride[1] - g.padding[1] + s * g.dilation[1])
                  for r in range(g.kernel[0]) for s in range(g.kernel[1])]  # fmt: skip
            found[p, q] = {
                (i // g.kernel[1], i % g.kernel[1]): (h, w)
                for i, (h, w) in enumerate(at) if 0 <= h < g.size[0] and 0 <= w < g.size[1]
            }  # fmt: skip
    return found


@pytest.mark.parametrize("g", GEOMETRIES)
def test_every_pixel_once_and_every_tap_inside_once(g):
    pixels, expected = plane.pixels(g), taps(g)
    assert collections.Counter((x.p, x.q) for x in pixels) == collections.Counter(expected.keys())
    for x in pixels:
        own = [(r, s) for r in range(x.r0, x.r1) for s in range(x.s0, x.s1)]
        assert sorted(own) == sorted(expected[x.p, x.q]) and len(own) == x.taps


@pytest.mark.parametrize("g", GEOMETRIES)
def test_the_heaviest_come_first(g):
    counts = [x.taps for x in plane.pixels(g)]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("g", GEOMETRIES)
def test_the_table_leads_the_kernel_to_the_same_places(g):
    """What kernels/triton/conv_plane.py computes from a row, in Python."""
    expected = taps(g)
    for position, count, width, r0, s0, top, left, _ in plane.table(g).tolist():
        walked = {}
        for tap in range(count):
            r, s = divmod(tap, width)
            walked[r0 + r, s0 + s] = (top + r * g.dilation[0], left + s * g.dilation[1])
        assert walked == expected[divmod(position, g.out[1])]
    assert plane.table(g).shape == (g.out[0] * g.out[1], plane.FIELDS)


def test_products_saved_at_the_edges():
    """The shares that docs/performance.md names."""
    for size, saved in ((14, 0.093), (7, 0.181)):
        found = plane.pixels(geometry((size, size)))
        assert 1 - sum(x.taps for x in found) / (9 * size * size) == pytest.approx(saved, abs=1e-3)


@pytest.mark.parametrize("n", [1, 64, 65, 256, 1000])
@pytest.mark.parametrize("k", [64, 128, 192, 512])
def test_tiles_cover_images_and_channels_once(n, k):
    for config in ({}, *plane.alternatives(k)):
        made = plane.launch(n, k, 49, **config)
        assert (made.image_blocks - 1) * made.block_n < n <= made.image_blocks * made.block_n
        assert made.channel_blocks * made.block_k == k
        assert 1 <= made.programs <= made.image_blocks * made.channel_blocks * 49
        # Operands and 32 channels of output and residual: within a block's shared memory (227 KiB).
        stage = 2 * plane.DEPTH * (made.block_n + made.block_k)
        assert made.num_stages * stage + 2 * 2 * 32 * made.block_n <= 227 << 10


@pytest.mark.parametrize(
    ("x", "weight", "dtype", "groups", "why"),
    [
        pytest.param((64, 64, 7, 7), (64, 64, 3, 3), torch.float16, 1, None, id="taken"),
        pytest.param((64, 65, 7, 7), (64, 65, 3, 3), torch.float16, 1, "input channels .* not 65", id="c"),
        pytest.param((64, 64, 7, 7), (96, 64, 3, 3), torch.bfloat16, 1, "output channels .* not 96", id="k"),
        pytest.param((64, 64, 7, 7), (64, 64, 3, 3), torch.float32, 1, "not float32", id="dtype"),
        pytest.param((64, 128, 7, 7), (64, 64, 3, 3), torch.float16, 2, "one group, not 2", id="groups"),
        pytest.param((64, 64, 8192, 8192), (64, 64, 3, 3), torch.float16, 1, "32 bits", id="huge"),
    ],
)
def test_what_is_refused(x, weight, dtype, groups, why):
    found = plane.refusal(x, weight, dtype, groups)
    assert found is None if why is None else re.search(why, found)


def test_what_suits():
    assert plane.suits((64, 64, 7, 7), (64, 64, 3, 3))
    assert not plane.suits((63, 64, 7, 7), (64, 64, 3, 3)) and not plane.suits((64, 64, 7, 7), (64, 64, 1, 1))


def test_a_capture_is_refused_only_for_a_new_shape(monkeypatch):
    g = geometry((5, 6))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run it once before the graph's capture"):
        plane.table_on(g, torch.device("cuda"))
    assert plane.table_on(g, torch.device("cpu")) is plane.table_on(g, torch.device("cpu"))


@pytest.mark.parametrize("g", GEOMETRIES)
def test_the_table_of_the_gradient_is_the_same_products_seen_from_the_input(g):
    expected = {(h, w): {} for h in range(g.size[0]) for w in range(g.size[1])}
    for pixel, own in taps(g).items():
        for tap, at in own.items():
            expected[at][tap] = pixel
    rows = plane.gradient_table(g).tolist()
    shared = [math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]
    assert len(rows) == len(expected)
    assert [count for _, count, *_ in rows] == sorted((count for _, count, *_ in rows), reverse=True)
    for position, count, width, r0, s0, top, left, _ in rows:
        walked = {}
        for tap in range(count):
            r, s = divmod(tap, width)
            at = (top - r * g.dilation[0] // shared[0], left - s * g.dilation[1] // shared[1])
            walked[r0 + r * g.stride[0] // shared[0], s0 + s * g.stride[1] // shared[1]] = at
        assert walked == expected[divmod(position, g.size[1])]
