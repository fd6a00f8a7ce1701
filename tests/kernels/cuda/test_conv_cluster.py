"""Slices of a convolution as the blocks of a cluster: the bits of the two kernels, whatever the schedule; and the early launch.

Plans and bits on the emulator; through the ops also on a GPU (--device=cuda), there in a CUDA graph too.
"""

import conv_emulated as emulated
import pytest
import torch
from conv_cases import EPS, ONE, TILES_AND_MATHS, Case, Conv
from conv_emulated import MATHS

CLUSTER = {"cluster": True}
EARLY = {"cluster": True, "early_weights": True}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_every_row_is_finished_once(size):
    for live in range(1, 129):
        shares = emulated.cluster_shares(live, size)
        assert [row for first, end in shares for row in range(first, end)] == list(range(live))
        assert max(end - first for first, end in shares) == -(-live // size), "as even as can be"


def both_forms(case, **how):
    """The output of two kernels, after those of a cluster with and without early weights had the same bits."""
    two = case.run(**how).clone()
    for form in (CLUSTER, EARLY):
        case.out.fill_(torch.nan)
        assert torch.equal(case.run(**how, **form), two), f"{form} has other bits than two kernels"
    return two


SPLITS = {"64x64": (2, 8), "128x64": (4, 8), "128x128": (2, 4)}


@pytest.mark.parametrize(("tile", "math", "splits"), [(t, m, s) for t, m in TILES_AND_MATHS for s in SPLITS[t]])
def test_bits_of_two_kernels(math, tile, splits):
    """144 pixels (2 x 8 x 9), 136 channels, 18 or 36 steps: ragged rows and columns, and a last slice that is shorter."""
    c = {2: 64, 4: 112, 8: 128}[splits] if MATHS[math][0] != torch.float32 else {2: 32, 4: 56, 8: 64}[splits]
    case = Case(math, (2, c, 8, 9), 136, 3, padding=1, seed=splits)
    plan = case.plan(tile=tile, splits=splits)
    if splits == 8:  # 18 steps are six slices of three: 16 are eight
        case = Case(math, (2, 2 * c, 8, 9), 136, (2, 4), padding=1, seed=splits)
        plan = case.plan(tile=tile, splits=splits)
    assert plan.splits == splits
    both_forms(case, tile=emulated.TILES[tile], splits=splits, seed=splits)
    case.check(tile=emulated.TILES[tile], splits=splits, seed=splits, **EARLY)


RAGGED = {
    "k 10": {"shape": (1, 64, 9, 8), "k": 10, "r": 3, "padding": 1},
    "groups 2": {"shape": (1, 96, 9, 7), "k": 48, "r": 3, "padding": 1, "groups": 2},
    "stride 2": {"shape": (3, 64, 9, 12), "k": 72, "r": 3, "stride": 2, "padding": 1},
    "dilation 2": {"shape": (1, 64, 12, 9), "k": 40, "r": 3, "padding": 2, "dilation": 2},
    "c 24": {"shape": (2, 24, 7, 7), "k": 64, "r": 3, "padding": 1, "residual": False},
    "one pixel": {"shape": (1, 256, 1, 1), "k": 64, "r": 1, "relu": False},
}


@pytest.mark.parametrize("math", ["bf16", "f32"])
@pytest.mark.parametrize("name", RAGGED)
def test_ragged_shapes(name, math):
    case = Case(math, **RAGGED[name])
    both_forms(case, tile=0, splits=2, seed=3)
    case.check(tile=0, splits=2, seed=4, **EARLY)


def test_same_bits_whatever_the_schedule():
    results = []
    for seed, policy in [(0, 0), (1, 0), (0, 1), (7, 1)]:
        case = Case("f16", (1, 128, 9, 9), 64, 3, padding=1)
        results.append(case.run(tile=0, splits=4, seed=seed, policy=policy, **EARLY).clone())
    assert all(torch.equal(r, results[0]) for r in results)


def test_a_batch_in_several_launches():
    """Each is early: the next begins while the one before may still run."""
    case = Case("bf16", (5, 64, 7, 7), 72, 3, padding=1)
    assert torch.equal(case.run(images=2, tile=0, splits=2).clone(), case.check(images=2, tile=0, splits=2, **EARLY))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("layer", emulated.RESNET34, ids=str)
def test_clusters_of_resnet34(layer, batch):
    c, k, r, stride, size = layer
    conv = emulated.sizes((batch, c, size, size), (k, c, r, r), stride, r // 2)
    found = emulated.cluster_choices(torch.bfloat16, conv)
    assert [clocks for *_, clocks in found] == sorted(clocks for *_, clocks in found)
    for tile, splits, _ in found:
        plan = emulated.plan(torch.bfloat16, conv, tile=tile, splits=splits)
        resident = {"64x64": 3, "128x64": 3, "128x128": 2}[tile] * 132
        assert plan.splits == splits and plan.tiles_m * plan.tiles_n * splits <= resident
    assert found or r == 1, "every 3x3 layer has one"


class OneAfterTheOther(Conv):
    """Three convolutions: of the input, of what the first wrote, and of that again with what the second wrote added."""

    def __init__(self, math, n=1):
        super().__init__(math, c=64, k=64, size=(9, 8), n=n)
        self.between = [self.empty() for _ in range(3)]

    def layer(self, ops, x, residual, out, weight=None, **form):
        weight = self.weight if weight is None else weight
        ops.conv_bn_relu(
            x, weight, *self.norm, residual, out, ONE, ONE, ONE, 1, EPS, True, self.tf32, tile="64x64", splits=2, **form
        )
        return out

    def chain(self, ops, **form):
        first, second, third = self.between
        self.layer(ops, self.x, None, first, **form)
        self.layer(ops, first, None, second, **form)
        return self.layer(ops, first, second, third, **form).clone()


@pytest.mark.parametrize("math", MATHS)
def test_a_chain_of_layers(ops, math):
    """Every layer is launched before the one that it reads, as input or residual, has ended."""
    case = OneAfterTheOther(math)
    two = case.chain(ops)
    assert two.isfinite().all() and two.unique().numel() > 100
    for form in (CLUSTER, EARLY):
        for t in case.between:
            t.fill_(torch.nan)
        assert torch.equal(case.chain(ops, **form), two)


def test_a_weight_that_was_just_written(ops, device):
    """Safe without early_weights; with them the caller has broken a promise, and the emulator says so."""
    case = OneAfterTheOther("f16")
    image = torch.randn(1, 64, 64, 9, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    written = torch.empty_like(image)
    weight = written.permute(0, 2, 3, 1).view(64, 3, 3, 64).permute(0, 3, 1, 2)  # the same memory as another shape
    case.layer(ops, image, None, written)
    two = case.layer(ops, case.x, None, case.empty(), weight=weight)
    case.layer(ops, image, None, written)
    assert torch.equal(case.layer(ops, case.x, None, case.empty(), weight=weight, **CLUSTER), two)
    if device == "cpu":
        case.layer(ops, image, None, written)
        with pytest.raises(RuntimeError, match="before grid_wait of what the kernel before writes"):
            case.layer(ops, case.x, None, case.empty(), weight=weight, **EARLY)


def test_a_cluster_that_was_asked_for_runs(ops, last_launch):
    case = Conv("f16", c=128, n=2)
    case.check(case.run(ops, "64x64", 4), case.weight, 1, True)
    blocks = last_launch()
    out = case.empty()
    ops.conv_bn_relu(case.x, case.weight, *case.norm, None, out, ONE, ONE, ONE, 1, EPS, True, tile="64x64", splits=4,
                     cluster=True)  # fmt: skip
    assert last_launch() == (2 * 2, 4, 1, 128) != blocks, "one launch, of tiles and slices"


def test_choices_with_clusters_come_last(ops):
    case = Conv("f16", c=128)
    arguments = case.x, case.weight, ONE, ONE, ONE, 1, 32, False
    without = ops.conv_choices(*arguments).splitlines()
    lines = ops.conv_choices(*arguments, clusters=True).splitlines()
    clusters = lines[len(without) :]
    assert lines[: len(without)] == without and {len(line.split()) for line in without} == {2}
    assert clusters and all(line.split()[2] == "cluster" for line in clusters)
    for tile, splits, _ in map(str.split, clusters):
        out = case.empty()
        ops.conv_bn_relu(case.x, case.weight, *case.norm, None, out, ONE, ONE, ONE, 1, EPS, True, tile=tile,
                         splits=int(splits), cluster=True)  # fmt: skip
        assert torch.equal(out, case.run(ops, tile, int(splits)))
    assert ops.conv_choices(*arguments[:6], 1, False, clusters=True).splitlines()[0].split()[1] == "1"


def test_views_that_start_askew_run_automatically(ops):
    case = Conv("f16")
    buffer = torch.empty(case.x.numel() + 1, dtype=case.x.dtype)
    askew = buffer[1:].as_strided(case.x.shape, case.x.stride()).copy_(case.x)
    out = case.empty()
    ops.conv_bn_relu(
        askew, case.weight, *case.norm, None, out, ONE, ONE, ONE, 1, EPS, True, tile="64x64", splits=2, **EARLY
    )
    case.check(out, case.weight, 1, True)


REFUSED = {
    "odd size": (64, "64x64", 3, CLUSTER, "splits of a cluster must be 2, 4 or 8, but is 3"),
    "too large": (64, "64x64", 16, CLUSTER, "splits of a cluster must be 2, 4 or 8, but is 16"),
    "empty slices": (64, "64x64", 8, CLUSTER, "splits 8 leaves slices without work: there are 9 steps"),
    "ragged channels": (65, "64x64", 2, CLUSTER, "cluster needs channels per group that divide by 8, but they are 65"),
    "no tile": (64, "auto", 0, CLUSTER, "cluster needs a tile and splits by name, but tile is auto"),
    "early alone": (64, "64x64", 2, {"early_weights": True}, "early_weights is for clusters, but cluster is false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_line(ops, name):
    c, tile, splits, form, message = REFUSED[name]
    case = Conv("f16", c=c)
    with pytest.raises(RuntimeError) as caught:
        ops.conv_bn_relu(case.x, case.weight, *case.norm, None, case.empty(), ONE, ONE, ONE, 1, EPS, True, tile=tile,
                         splits=splits, **form)  # fmt: skip
    assert str(caught.value).splitlines()[0] == f"conv_bn_relu: {message}"


def test_the_benchmark_compares_bits(ops, device, monkeypatch):
    """Every form of a layer, once: what `make gpu` runs at batches 1 and 8."""
    from benchmarks.gpu import latency
    from benchmarks.protocol import cases
    from resnet_fused.measure import timing
    from resnet_fused.models import resnet

    model = resnet.resnet18().to(memory_format=torch.channels_last)
    found = cases.collect(model, 1, 32, torch.float16, ("conv_bn_relu",), ("forward",))
    case = next(c for c in found if c.shape[1] == 64)
    monkeypatch.setattr(timing, "compare", lambda runs, **_: runs)
    names = list(latency.compare(ops, case, device, 0.0))
    assert names[0] == "default" and [n.split()[0] for n in names[1:4]] == ["two", "cluster", "cluster"]
    real = latency.call
    wrong = lambda ops, a, out, tf32, config: real(ops, a, out, tf32, config).add_("cluster" in config)  # noqa: E731
    monkeypatch.setattr(latency, "call", wrong)
    with pytest.raises(RuntimeError, match="has other bits than two kernels"):
        latency.compare(ops, case, device, 0.0)


def test_a_graph_keeps_the_early_launches(ops, device):
    """Replayed many times: a layer that read too early would meet the values of the replay before."""
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    case = OneAfterTheOther("bf16", n=8)
    case.chain(ops, **EARLY)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(8):
            case.chain(ops, **EARLY)
    for seed in range(50):
        torch.manual_seed(seed)
        case.x.copy_(torch.randn_like(case.x))
        two = case.chain(ops)
        for t in case.between:
            t.fill_(torch.nan)
        graph.replay()
        assert torch.equal(case.between[2], two)
