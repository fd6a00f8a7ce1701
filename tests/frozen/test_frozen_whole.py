"""A frozen network in one call of the library: the numbers of eager, the memory it keeps, what it refuses.

Where there is no matrix unit its kernels run emulated, which is slow: the networks are small.
"""

import copy
import functools
import math
import threading

import pytest
import torch
from eager import eager_of
from one_call_cases import cifar, frozen, measured, network

import resnet_fused
from resnet_fused.frozen.cpu import convolutions, one_call
from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget
from resnet_fused.measure.oracle import by_modules
from resnet_fused.models.resnet import Bottleneck

pytestmark = [
    pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent())),
    pytest.mark.usefixtures("vectors_or_the_unit_or_its_emulation"),
]


CASES = {
    "basic": (network, (2, 3, 64, 64)),
    "bottleneck": (lambda: network(Bottleneck), (1, 3, 64, 64)),
    "ragged": (network, (3, 3, 49, 37)),
    "one-pixel-maps": (network, (1, 3, 17, 9)),
    "cifar-zero-padded": (cifar, (2, 3, 32, 32)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_eager(case, dtype):
    make, shape = CASES[case]
    model, x = make(), torch.randn(shape)
    before = x.clone()
    engine = resnet_fused.freeze(model, x, dtype=dtype)
    assert engine._calls.one_call is not None
    with torch.no_grad():
        oracle = copy.deepcopy(model).double()(x.double())
        eager = eager_of(functools.partial(by_modules(model).to(dtype), x.to(dtype)), oracle)
    logits = engine(x)
    assert_within_budget(logits, eager, oracle, f"whole, {dtype}", channel_dim=None)
    assert torch.equal(x, before) and logits.dtype == dtype and logits.is_contiguous()
    assert torch.equal(engine(x), logits)


@pytest.fixture
def engine():
    whole = frozen(network)._calls.one_call
    whole.encodings.clear()
    whole.arenas.clear()
    return frozen(network)


def test_inputs_of_any_strides_and_sizes(engine):
    x = torch.randn(2, 3, 48, 48)
    logits = engine(x)
    assert torch.equal(engine(x.contiguous(memory_format=torch.channels_last)), logits)
    assert torch.equal(engine(torch.randn(2, 3, 50, 50)[:, :, 1:49, 1:49].copy_(x)), logits)
    assert torch.equal(engine(x.flip(3).flip(3)), logits)
    grey = torch.randn(2, 1, 48, 48).expand(2, 3, 48, 48)
    assert torch.equal(engine(grey), engine(grey.contiguous()))
    assert torch.equal(engine(x[:1]), logits[:1])  # the bits do not depend on the batch
    assert engine(torch.randn(3, 3, 40, 56)).shape == (3, 7)
    assert engine(x[:0]).shape == (0, 7)


@pytest.mark.parametrize("make", [network, lambda: network(Bottleneck), cifar], ids=["basic", "bottleneck", "cifar"])
def test_large_maps_run_in_pieces_of_the_batch(make, monkeypatch):
    engine = frozen(make)
    x = torch.randn(5, 3, 48, 48)
    whole = engine._calls.one_call
    expected = engine(x)
    together = whole.encodings.pop((x.shape, False, torch.get_num_threads()))
    maps = [one_call.map_after(engine._steps[:i], x.shape[1:]) for i in range(1, len(engine._steps))]
    one = 4 * max(map(math.prod, maps))
    for piece, sizes in ((one, [1] * 5), (2 * one, [2, 2, 1]), (5 * one, [5])):
        monkeypatch.setattr(one_call, "PIECE", piece)
        steps = one_call.Encoding(whole, x.shape)
        first = steps.numbers[steps.numbers[:, 1] == one_call.INPUT]
        assert first[:, 6].tolist() == sizes and first[:, 20].tolist() == [sum(sizes[:i]) for i in range(len(sizes))]
        assert steps.activations <= together.activations
        whole.encodings[x.shape, False, torch.get_num_threads()] = steps
        for arena in whole.arenas:
            arena.fill_(255)  # every value a NaN
        assert torch.equal(engine(x), expected)
        assert torch.equal(engine(x[:, :, :, ::2].repeat_interleave(2, 3)[..., :48].copy_(x)), expected)
    whole.encodings.clear()


def test_bfloat16_takes_both_dtypes():
    x = torch.randn(1, 3, 40, 40)
    engine = resnet_fused.freeze(network(), x, dtype=torch.bfloat16)
    assert torch.equal(engine(x), engine(x.bfloat16()))


def test_the_bits_do_not_depend_on_threads(engine):
    x, threads = torch.randn(2, 3, 48, 48), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(engine(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_arenas_are_kept_one_for_each_call_at_a_time(engine):
    x = torch.randn(2, 3, 48, 48)
    expected = engine(x)
    arenas = engine._calls.one_call.arenas
    (arena,) = arenas
    for shape in ((2, 3, 48, 48), (1, 3, 48, 48), (2, 3, 40, 40)):  # smaller inputs make do with it
        engine(torch.randn(shape))
    assert [a.data_ptr() for a in arenas] == [arena.data_ptr()]
    engine(torch.randn(4, 3, 48, 48))
    assert len(arenas) == 1 and len(arenas[0]) > len(arena)  # the smaller one is gone
    results, wrong = [], []

    def call():
        for _ in range(3):
            if not torch.equal(engine(x), expected):
                wrong.append(1)
        results.append(1)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3 and not wrong
    assert 1 <= len(arenas) <= 3


def test_poisoned_arenas_change_nothing(engine):
    x = torch.randn(2, 3, 48, 48)
    expected = engine(x)
    (arena,) = engine._calls.one_call.arenas
    arena.fill_(0xFF)  # NaN in both dtypes
    assert torch.equal(engine(x), expected)


def test_shapes_are_not_remembered_for_ever(engine, monkeypatch):
    monkeypatch.setattr(one_call, "SHAPES", 3)
    for size in range(17, 25):
        engine(torch.randn(1, 3, size, 9))
        assert 1 <= len(engine._calls.one_call.encodings) <= 3


def test_refresh_reads_the_weights_again():
    model, x = network(), torch.randn(2, 3, 48, 48)
    engine = resnet_fused.freeze(model, x)
    before = engine(x)
    with torch.no_grad():
        model.fc.bias += 1
        model.layer1[0].conv1.weight *= 1.5
    assert torch.equal(engine(x), before)
    engine.refresh()
    assert not torch.equal(engine(x), before)
    assert torch.equal(engine(x), resnet_fused.freeze(model, x)(x))


@pytest.mark.parametrize("faster", ["whole", "layers"])
def test_what_is_faster_is_used(monkeypatch, faster):
    onednn = (convolutions.OneDNN, *(way for way in convolutions.STEM if "onednn" in way.name))
    measured(monkeypatch, onednn, whole=1.0 if faster == "whole" else 3.0, layers=2.0)
    engine = resnet_fused.freeze(network(), torch.randn(2, 3, 48, 48))
    assert (engine._calls.one_call is not None) == (faster == "whole")
    backends = {row["backend"] for row in engine.rows}
    if faster == "whole":
        assert not any("onednn" in backend for backend in backends)
        assert all("in one call with other layers" in row["reason"] for row in engine.rows)
    else:
        assert all("onednn" in backend for backend in backends)


def test_exact_keeps_a_nan_where_it_belongs():
    x = torch.randn(3, 3, 48, 48)
    engine = resnet_fused.freeze(network(), x, exact=True)
    assert engine._calls.one_call is not None
    assert {row["backend"] for row in engine.rows} == {"stem", "direct"}
    clean = engine(x)
    x[1, 0, 20, 20] = torch.nan
    logits = engine(x)
    assert logits[1].isnan().all() and torch.equal(logits[::2], clean[::2])


def test_a_stem_that_no_fused_one_can_run():
    """Padding as wide as the kernel: pool windows that see nothing of the image."""
    model = network()
    model.conv1 = torch.nn.Conv2d(3, 64, 1, padding=1, bias=False)
    x = torch.randn(1, 3, 12, 12)
    engine = resnet_fused.freeze(model, x)
    assert "max_pool2d" in engine.rows[0]["backend"] and engine._calls.one_call is None
    with torch.no_grad():
        assert_within_budget(engine(x), model(x), copy.deepcopy(model).double()(x.double()), "stem", channel_dim=None)


@pytest.mark.parametrize(
    ("edit", "stretches"),
    [
        pytest.param(lambda m: setattr(m, "avgpool", torch.nn.AvgPool2d(2)), [12], id="avgpool"),
        pytest.param(lambda m: setattr(m, "maxpool", torch.nn.MaxPool2d(2, ceil_mode=True)), [12], id="maxpool"),
        pytest.param(lambda m: setattr(m.layer2[0], "relu", torch.nn.Softplus()), [3, 7], id="activation"),
    ],
)
@torch.no_grad()
def test_other_parts_run_between_calls_of_the_library(edit, stretches):
    model, x = network(), torch.randn(2, 3, 64, 64)
    edit(model)
    engine = resnet_fused.freeze(model, x)
    assert engine._calls.one_call is None
    assert [len(s) for s in one_call.stretches(engine._steps, engine._results)] == stretches
    assert_within_budget(engine(x), model(x), copy.deepcopy(model).double()(x.double()), "parts", channel_dim=None)
