"""Numbers and memory that do not fit the one call of the library which a frozen network is (csrc/cpu/network/network.h)."""

import pytest
import torch
from one_call_cases import cifar, frozen, network

from resnet_fused.frozen.cpu import one_call
from resnet_fused.kernels import library

pytestmark = [
    pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent())),
    pytest.mark.usefixtures("vectors_or_the_unit_or_its_emulation"),
]
ops = torch.ops.resnet_fused_native


def prepared(engine, x):
    """The steps for `x`."""
    key = x.shape, False, torch.get_num_threads()
    if key not in engine._calls.one_call.encodings:
        engine(x)
    return engine._calls.one_call.encodings[key]


def call(engine, *, steps=None, arena=None, activations=None, constants=None, classes=7):
    x = torch.randn(2, 3, 48, 48)
    whole, own = engine._calls.one_call, prepared(engine, x)
    ops.frozen_network(
        x,
        whole.constants if constants is None else constants,
        own.numbers if steps is None else steps,
        whole.arenas[0] if arena is None else arena,
        own.activations if activations is None else activations,
        torch.empty(2, classes),
    )


def _edited(engine, row, column, value):
    steps = prepared(engine, torch.randn(2, 3, 48, 48)).numbers.clone()
    steps[row, column] = value
    return steps


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        pytest.param(3, 0, 99, "no known kind", id="kind"),
        pytest.param(0, 9, 1, "another shape", id="input"),
        pytest.param(0, 20, 1, "another shape", id="past-the-last-image"),
        pytest.param(0, 20, -1, "another shape", id="before-the-first-image"),
        pytest.param(2, 1, 1 << 40, "reads outside", id="from"),
        pytest.param(2, 3, 1 << 40, "writes outside", id="to"),
        pytest.param(2, 2, 1 << 40, "adds what is outside", id="residual"),
        pytest.param(2, 4, 1 << 40, "outside of the constants", id="weight"),
        pytest.param(2, 4, 4, "outside of the constants", id="weight-alignment"),
        pytest.param(2, 6, 0, "not positive", id="batch"),
        pytest.param(2, 13, 0, "not positive", id="stride"),
        pytest.param(2, 7, 1 << 40, "too large", id="height"),
        pytest.param(2, 11, 99, "no output pixel", id="kernel"),
        pytest.param(2, 16, 7, r"has activation 7, but its kernels have 0", id="activation"),
        pytest.param(0, 16, 0, r"has activation 0, but its kernels have 1 \(relu\)", id="stem-without-relu"),
    ],
)
def test_steps_that_do_not_fit_are_refused(row, column, value, message):
    engine = frozen(network)
    with pytest.raises(RuntimeError, match=message):
        call(engine, steps=_edited(engine, row, column, value))


def test_a_zero_padding_that_drops_channels_is_refused():
    engine = frozen(cifar)
    pad = _edited(engine, 0, 0, one_call.COPY)[:, 0].tolist().index(one_call.PAD)
    for column, value in ((9, 99), (14, 1), (11, 3)):  # channels, padding, kernel
        with pytest.raises(RuntimeError, match="no zero padding"):
            call(engine, steps=_edited(engine, pad, column, value), classes=10)


def test_memory_that_does_not_fit_is_refused():
    engine = frozen(network)
    call(engine)
    with pytest.raises(RuntimeError, match="arena is too small"):
        call(engine, arena=torch.empty(1000, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="outside of the arena"):
        call(engine, activations=64)
    with pytest.raises(RuntimeError, match="outside of the constants"):
        call(engine, constants=one_call._aligned(64))
    with pytest.raises(RuntimeError, match="outside of the arena or the output"):
        call(engine, classes=8)
    with pytest.raises(RuntimeError, match="contiguous uint8"):
        call(engine, arena=torch.empty(1000))
    with pytest.raises(RuntimeError, match="int64"):
        call(engine, steps=torch.zeros(18, dtype=torch.int64))
    with pytest.raises(ValueError, match="no output pixel"):
        one_call.Encoding(engine._calls.one_call, torch.Size((1, 3, 0, 5)))
