"""A forward that changes or tells something besides its result is not converted, and its traces leave nothing behind."""

import collections
import logging
import sys
import threading
import types

import pytest
import torch
from foreign import Plain, lively, run
from torch import nn

from resnet_fused import convert
from resnet_fused.conversion.convert import is_converted

CALLS, STEPS, COUNTS = [], 0, collections.Counter()
ELSEWHERE = types.ModuleType("elsewhere")
ELSEWHERE.calls = 0
LOGGER = logging.getLogger("forward")


def count():
    COUNTS["calls"] += 1


class Tally:
    def __init__(self):
        self.total = 0

    def add(self):
        self.total += 1


class Base(Plain):
    total = 0

    def __init__(self):
        super().__init__()
        self.calls, self.nested, self.tally, self.seen = 0, {"stats": [1]}, Tally(), collections.deque([1])

    def forward(self, x):
        self.effect(x)
        return super().forward(x)


def enclosed():
    calls = 0

    def effect(self, x):
        nonlocal calls
        calls += 1

    return effect


def add_to_a_global(self, x):
    global STEPS
    STEPS += 1


def on_the_class(self, x):
    Base.total += 1


def elsewhere(self, x):
    ELSEWHERE.calls += 1


def on_a_child(self, x):
    self.first.calls = 1


def modes(self, x):
    self.norm_a.eval()


def attribute(self, x):
    self.calls += 1


def listed(self, x):
    CALLS.append(x.shape)


def to_stderr(self, x):
    print("x", file=sys.stderr)


EFFECTS = {
    "attribute": (attribute, "sets its attribute calls"),
    "nested": (lambda self, x: self.nested["stats"].append(1), "sets its attribute nested"),
    "deque": (lambda self, x: self.seen.append(1), "sets its attribute seen"),
    "helper": (lambda self, x: self.tally.add(), "sets its attribute tally.total"),
    "child": (on_a_child, "sets its attribute first.calls"),
    "new-child": (lambda self, x: self.short.append(nn.Identity()), "sets its attribute short"),
    "mode-of-a-child": (modes, "sets its attribute norm_a.training"),
    "buffer": (lambda self, x: self.register_buffer("new", None), "sets its attribute _buffers"),
    "class": (on_the_class, "sets global total"),
    "list": (listed, "sets global CALLS"),
    "global": (add_to_a_global, "sets global STEPS"),
    "function": (lambda self, x: count(), "sets global COUNTS.calls"),
    "module": (elsewhere, "sets global calls"),
    "closure": (enclosed(), "sets a variable of an enclosing function"),
    "print": (lambda self, x: print(x.shape), "prints"),
    "stderr": (to_stderr, "prints"),
    "log": (lambda self, x: LOGGER.debug("x"), "logs to forward"),
}  # fmt: skip


def everything(block):
    own = [[(k, id(v)) for k, v in vars(m).items()] for m in block.modules()]
    children = [list(m._modules) + list(m._buffers) for m in block.modules()]
    return (
        own, children, list(CALLS), STEPS, dict(COUNTS), ELSEWHERE.calls, Base.total, vars(block.tally).copy(),
        str(block.nested), list(block.seen),
    )  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_is_refused(name, capsys):
    effect, reason = EFFECTS[name]
    block = type("Block", (Base,), {"effect": effect})()
    before = everything(block)
    with pytest.raises(RuntimeError, match=rf"0 \(Block\): its forward {reason}"):
        convert(nn.Sequential(block), strict=True)
    assert everything(block) == before and capsys.readouterr() == ("", "")
    assert name != "closure" or effect.__closure__[0].cell_contents == 0
    assert not is_converted(convert(block))


class Local(Plain):
    """Lists, dicts and globals of its own that nobody else sees; and a counter that it only reads."""

    def forward(self, x):
        maps, names = [], {}
        for conv, norm in ((self.first, self.norm_a), (self.second, self.norm_b)):
            x = torch.relu(norm(conv(x)))
            maps.append(x)
            names[len(names)] = len(CALLS)
        return maps[-1]


def test_what_stays_inside_is_no_effect():
    block, x = lively(Local), torch.randn(2, 8, 9, 9)
    expected, _ = run(block, x)
    out, rows = run(convert(block, strict=True), x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert len(rows) >= 2


def test_another_thread_may_print_meanwhile(monkeypatch, capsys):
    """While a block is traced sys.stdout refuses the thread that traces alone."""

    class Waits(Plain):
        def forward(self, x):
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()
            return super().forward(x)

    assert is_converted(convert(Waits(), strict=True))
    assert capsys.readouterr().out == "from a thread\n" * 4
