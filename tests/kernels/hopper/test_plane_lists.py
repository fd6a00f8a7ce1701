"""The lists of csrc/cuda/hopper/plane/plan.h: every output pixel once, every tap inside of the input once, for a
convolution and for the gradient of its input; no plane is read before it is loaded or after its slot may be another's."""

import conv_emulated
import plane_emulated as emulated
import pytest
import torch
from emulator import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


def conv(size, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), n=3, c=64, k=128):
    """As conv_emulated.sizes, with two numbers of everything."""
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    p, q = ((i + 2 * a - d * (r - 1) - 1) // s + 1 for i, r, s, a, d in sides)
    return {
        "n": n, "h": size[0], "w": size[1], "c": c, "k": k, "r": kernel[0], "s": kernel[1], "p": p, "q": q, "groups": 1,
        "stride_h": stride[0], "stride_w": stride[1], "pad_h": padding[0], "pad_w": padding[1],
        "dilation_h": dilation[0], "dilation_w": dilation[1],
    }  # fmt: skip


CONVS = [
    pytest.param(conv((14, 14)), id="14x14"),
    pytest.param(conv((7, 7)), id="7x7"),
    pytest.param(conv((14, 14), stride=(2, 2)), id="stride-2"),
    pytest.param(conv((9, 11), stride=(2, 2)), id="stride-2-odd"),
    pytest.param(conv((14, 14), (1, 1), (2, 2), (0, 0)), id="projection"),
    pytest.param(conv((9, 5), (3, 3), (1, 1), (2, 2), (2, 2)), id="dilation-2"),
    pytest.param(conv((20, 21), (7, 7), (1, 1), (3, 3)), id="7x7-filter"),
    pytest.param(conv((9, 11), (5, 4), (3, 3), (2, 2), (2, 3)), id="stride-and-dilation"),
    pytest.param(conv((4, 5), (3, 2), (1, 2), (0, 1)), id="no-square"),
    pytest.param(conv((2, 2), (1, 1), (1, 1), (3, 3)), id="pixels-without-taps"),
    pytest.param(conv((1, 1)), id="1x1"),
    pytest.param(conv((3, 3), (2, 2), (1, 1), (4, 4), (3, 3)), id="dilation-jumps-over-the-map"),
]


def products(a):
    """Every (output pixel, tap, input pixel) inside of the input, by the definition of a convolution."""
    for p, q, r, s in ((p, q, r, s) for p in range(a["p"]) for q in range(a["q"])
                       for r in range(a["r"]) for s in range(a["s"])):  # fmt: skip
        h = p * a["stride_h"] - a["pad_h"] + r * a["dilation_h"]
        w = q * a["stride_w"] - a["pad_w"] + s * a["dilation_w"]
        if 0 <= h < a["h"] and 0 <= w < a["w"]:
            yield p * a["q"] + q, r * a["s"] + s, h * a["w"] + w


@pytest.mark.parametrize("places", [4, 2])
@pytest.mark.parametrize("gradient", [False, True], ids=["convolution", "gradient"])
@pytest.mark.parametrize("a", CONVS)
def test_every_pixel_once_and_every_tap_inside_once(a, gradient, places):
    found, pixels = [], []
    for group in emulated.groups(a, gradient, places):
        assert group.pixels[places:] == [-1] * (emulated.PLACES - places)
        pixels += [pixel for pixel in group.pixels if pixel >= 0]
        planes = []
        for record in group.records:
            planes += record.loaded
            assert any(plane >= 0 for plane in record.read), "a tap without products"
            for pixel, plane in zip(group.pixels, record.read, strict=True):
                if plane >= 0:
                    found.append((pixel, record.tap, planes[plane]))
        assert len(planes) == group.planes
    count = a["h"] * a["w"] if gradient else a["p"] * a["q"]
    assert sorted(pixels) == list(range(count))
    expected = [(i, tap, o) if gradient else (o, tap, i) for o, tap, i in products(a)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("places", [4, 2])
@pytest.mark.parametrize("gradient", [False, True], ids=["convolution", "gradient"])
@pytest.mark.parametrize("a", CONVS)
def test_a_slot_is_free_when_its_next_plane_comes(a, gradient, places):
    """Planes are given back once, after their last product; and two taps before the ring comes round to their slot, which
    is when a warpgroup that waits for the products of the tap before has given them back. Else it would wait for ever."""
    for group in emulated.groups(a, gradient, places):
        loaded, freed, last = [], {}, {}
        for _ in range(2):  # two steps of 64 channels: the ring runs on
            base = len(loaded)
            for record in group.records:
                tap = len(last)
                last[tap] = base + len(record.freed)
                loaded += [tap] * len(record.loaded)
                assert all(base + plane < len(loaded) for plane in record.read if plane >= 0)
                for plane in record.freed:
                    assert base + plane not in freed
                    freed[base + plane] = tap
                for plane in record.read:
                    assert plane < 0 or freed.get(base + plane, tap) == tap, "read after it was given back"
        assert sorted(freed) == list(range(len(loaded)))
        for plane in range(emulated.SLOTS, len(loaded)):
            assert freed[plane - emulated.SLOTS] <= loaded[plane] - 2


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("gradient", [False, True], ids=["convolution", "gradient"])
@pytest.mark.parametrize("n", [1, 64, 65, 128, 129, 256])
def test_every_tile_once_and_the_same_weights_in_a_cluster(n, gradient, cluster):
    """Blocks of a cluster step through one list and the same output channels; what lies past the batch is a partner's."""
    a = conv((5, 6), n=n, c=192, k=320)
    written = a["c"] if gradient else a["k"]
    spots = emulated.spots(a, gradient, cluster=cluster)
    for ranks in spots:
        assert len(ranks) == cluster and len({(group, channel) for group, _, channel in ranks}) == 1
        assert [image for _, image, _ in ranks] == [ranks[0][1] + 64 * rank for rank in range(cluster)]
        assert ranks[0][1] < n, "a cluster without any image"
    real = [spot for ranks in spots for spot in ranks if spot[1] < n]
    groups = range(len(emulated.groups(a, gradient)))
    assert sorted(real) == [(g, i, k) for g in groups for i in range(0, n, 64) for k in range(0, written, 128)]
    assert [ranks[0][0] for ranks in spots] == sorted(ranks[0][0] for ranks in spots), "the heaviest first"


@pytest.mark.parametrize("a", CONVS)
def test_the_heaviest_come_first(a):
    costs = [sum(plane >= 0 for record in g.records for plane in record.read) for g in emulated.groups(a)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize(
    ("stride", "gradient", "planes", "products"),
    [
        pytest.param(1, False, 18, 36, id="3x3"),
        pytest.param(2, False, 27, 36, id="stride-2"),
        pytest.param(1, True, 18, 36, id="gradient"),
        pytest.param(2, True, 10, 16, id="gradient-of-stride-2"),
    ],
)
def test_neighbours_share_planes(stride, gradient, planes, products):
    """Inside of the map, four pixels of nine taps read 18 planes, not 36; with stride 2 27, since columns of the other
    parity are others; of the gradient with stride 2 a quarter of the pixels has four taps."""
    groups = emulated.groups(conv((24, 24), stride=(stride, stride)), gradient)
    inner = [g for g in groups if sum(plane >= 0 for r in g.records for plane in r.read) == products]
    assert inner and {g.planes for g in inner} == {planes}


@pytest.mark.parametrize("places", [4, 2])
def test_a_group_that_is_not_full_keeps_both_warpgroups_busy(places):
    for group in emulated.groups(conv((1, places - 1 if places > 2 else 3)), places=places):
        first, second = (sum(p >= 0 for p in group.pixels[i : i + places // 2]) for i in (0, places // 2))
        assert first - second in (0, 1)


@pytest.mark.parametrize(
    ("changes", "dtype", "gradient", "capability", "why"),
    [
        pytest.param({}, "float16", False, (9, 0), "", id="runs"),
        pytest.param({"k": 192}, "bfloat16", False, (9, 0), "", id="192 channels"),
        pytest.param({"c": 128, "k": 64}, "bfloat16", True, (9, 0), "", id="gradient"),
        pytest.param({}, "float16", False, (8, 0), "for compute capability 9.0, the device has 8.0", id="A100"),
        pytest.param({}, "float16", False, (10, 0), "for compute capability 9.0, the device has 10.0", id="B200"),
        pytest.param({}, "float32", False, (9, 0), "float16 and bfloat16, not float32", id="float32"),
        pytest.param({"groups": 2}, "float16", False, (9, 0), "one group, not 2", id="groups"),
        pytest.param({"c": 96}, "float16", False, (9, 0), "reads channels in multiples of 64, not 96", id="c"),
        pytest.param({"k": 64}, "float16", False, (9, 0), "multiples of 64 from 128 on, not 64", id="64 channels"),
        pytest.param({"k": 160}, "float16", False, (9, 0), "multiples of 64 from 128 on, not 160", id="k"),
        pytest.param({}, "float16", True, (9, 0), "multiples of 64 from 128 on, not 64", id="gradient to 64"),
        pytest.param({"h": 2**13, "w": 2**12}, "float16", False, (9, 0), "counts in 32 bits", id="large image"),
        pytest.param({"h": 2**10, "w": 2**10, "k": 2**11}, "float16", False, (9, 0), "counts in 32 bits", id="large result"),
        pytest.param({"n": 2**30}, "float16", False, (9, 0), "counts in 32 bits", id="many images"),
    ],
)  # fmt: skip
def test_what_it_refuses(changes, dtype, gradient, capability, why):
    found = emulated.refusal(getattr(torch, dtype), conv((14, 14)) | changes, gradient, capability)
    assert (why in found) and bool(found) == bool(why)


def test_shared_memory():
    shared = emulated.library().plane_shared()
    assert 200_000 < shared <= 227 * 1024


def test_tables_of_resnet34_are_small():
    for c, k, r, stride, size in conv_emulated.RESNET34:
        a = conv((size, size), (r, r), (stride, stride), (r // 2, r // 2), c=c, k=k)
        groups = emulated.groups(a)
        assert len(groups) * emulated.HEADER + sum(len(g.records) for g in groups) * emulated.RECORD < 2**17
