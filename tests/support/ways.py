"""Ways to hold a network: the same is done to a fused network and to the eager one, and nobody must be able to tell.

A cell is a way, a kind of network (ways_networks.py) and a mode. Its outcome is one of three: equal to eager, by the fused ops
or by a fallback whose reason `explain` prints; the error that eager raises; or an error of ours in one line, raised before
anything has changed. `freeze()` may refuse a network in any way. Numbers are judged against the same in float64: at most three
times eager's own error, as in fuzz_case.py.
"""

import contextlib
import itertools
import re
from typing import NamedTuple

import pytest
import torch
from edits import lightly
from ways_compare import Different, attempt, compare, one_line
from ways_networks import KINDS, network
from what_works import reasons_of

import resnet_fused
from resnet_fused import dispatch

LIVE = tuple(kind for kind in KINDS if kind != "frozen")
MODES = ("evaluation", "gradients", "training")  # evaluation without gradients, with gradients, training


class Net:
    """One network in the hands of a way.

    model: the module. x: the images. mode: one of MODES. outs: what it returned. seen: what hooks and the way itself saw.
    exact: whether this is the network in float64.
    """

    def __init__(self, kind, mode, seed, fused=False, exact=False):
        generator = torch.Generator().manual_seed(seed)
        self.kind, self.mode, self.fused, self.exact = kind, mode, fused, exact
        self.model = network(kind, fused).train(mode == "training")
        self.x = torch.randn(2, 3, 32, 32, generator=generator)
        self.another = torch.randn(2, 3, 32, 32, generator=generator)
        self.grad = torch.randn(2, 5, generator=generator)
        if exact:
            self.model.double()
            self.x, self.another, self.grad = self.x.double(), self.another.double(), self.grad.double()
        self.x.requires_grad_(mode != "evaluation")
        self.outs, self.seen, self.explained, self.before = [], [], None, None

    @property
    def frozen(self):
        return self.kind == "frozen" and self.fused

    def path(self, role):
        return KINDS[self.kind].parts[role]

    def part(self, role):
        """The module of a role: "stem", "layer", "block", "conv", "norm", "relu", ..., or "network"."""
        return self.model if role == "network" else self.model.get_submodule(self.path(role))

    def parent(self, role):
        """(the module that holds the part, its name there)"""
        path, _, name = self.path(role).rpartition(".")
        return self.model.get_submodule(path), name

    def replace(self, role, module):
        setattr(*self.parent(role), module)

    def low(self, dtype):
        """`dtype`, or float64 for the network in float64."""
        return torch.float64 if self.exact else dtype

    def see(self, *values):
        self.seen += values

    def ready(self):
        """The network as people call it: converted by now, or its engine."""
        if self.fused and KINDS[self.kind].late:
            resnet_fused.convert(self.model)
        return resnet_fused.freeze(self.model, self.x) if self.frozen else self.model

    def state(self):
        """Copies of what a call that raises must leave alone."""
        tensors = [*self.model.state_dict().values(), *(p.grad for p in self.model.parameters() if p.grad is not None)]
        return [t.detach().clone() for t in tensors]

    def step(self, call=None, x=None):
        """A forward pass, of `call` or else of the network, and but in evaluation a backward pass; returns the output."""
        self.before = self.state()
        ready = self.ready()
        if self.explained is not None and not self.frozen:
            self.explained += resnet_fused.explain(self.model, self.x.detach()).rows
        x = self.x if x is None else x
        if self.mode == "evaluation":
            with torch.no_grad():
                out = (call or ready)(x)
        else:
            out = (call or ready)(x)
            if out.requires_grad:
                out.backward(self.grad.to(out.dtype).expand_as(out) if out.dim() == 2 else torch.ones_like(out))
        self.outs.append(out)
        return out


def unchanged(net):
    now = net.state()
    return len(now) == len(net.before) and all(torch.equal(a, b) for a, b in zip(now, net.before, strict=True))


class Way(NamedTuple):
    """Something that people do.

    act: function of a Net; returns further outputs or None. why: pattern of the reasons why anything ran by its modules; None:
    there is none. refused: pattern of the error where we raise and eager does not. but: {kind, mode or (kind, mode): other
    fields}. needs: roles that the network must have. kinds, modes: those for which the way makes sense. low: the 16-bit type it
    computes in. loose: instead of the error budget, a distance from eager. slow: at most one cell of it runs by default.
    """

    name: str
    act: callable
    why: str | None = None
    refused: str | None = None
    but: dict = {}  # noqa: RUF012 (never written)
    needs: tuple = ()
    kinds: tuple = tuple(KINDS)
    modes: tuple = MODES
    low: torch.dtype | None = None
    loose: float | None = None
    slow: bool = False


class Cell(NamedTuple):
    way: Way
    kind: str
    mode: str

    def __str__(self):
        return f"{self.way.name}, {self.kind}, {self.mode}"

    def expected(self):
        """The way, with what is different for this kind and mode."""
        way = self.way._replace(refused=self.way.refused or ("^(freeze|engine): " if self.kind == "frozen" else None))
        for key in (self.kind, self.mode, (self.kind, self.mode)):
            way = way._replace(**way.but.get(key, {}))
        return way

    def net(self, seed, **what):
        return Net(self.kind, self.mode, seed, **what)

    def check(self):
        """Raises AssertionError, with the cell's name, unless the outcome is one of the three."""
        way = self.expected()
        for seed in range(
            3
        ):  # a ReLU may let a value pass in one of two runs that differ by rounding; seldom for three inputs
            try:
                return self._check(way, seed)
            except Different as e:
                wrong = e
            except AssertionError as e:
                raise AssertionError(f"{self}: {e}") from e
        raise AssertionError(f"{self}: {wrong}") from wrong

    def _check(self, way, seed):
        ours, eager = attempt(way, self.net(seed, fused=True)), attempt(way, self.net(seed))
        if eager.error is not None:
            assert type(ours.error) is type(eager.error), (
                f"eager raises {one_line(eager.error)}, ours {one_line(ours.error) if ours.error else 'nothing'}"
            )
            return f"as eager: {one_line(eager.error)}"
        if ours.error is not None:
            if way.refused is None or not re.search(way.refused, str(ours.error)):
                raise AssertionError(f"ours alone raises {one_line(ours.error)}") from ours.error
            assert "\n" not in str(ours.error), f"the error has more than one line: {ours.error}"
            assert unchanged(ours.net), "the network has changed before the error"
            return f"refused: {one_line(ours.error)}"
        assert way.refused is None or self.kind == "frozen", f"is not refused ({way.refused})"
        exact = attempt(way, self.net(seed, exact=True)) if not (way.loose or self.kind == "frozen") else eager
        if exact.error is not None:
            raise exact.error
        compare(way, ours, eager, exact)
        without_kernels = (
            resnet_fused.backends()["native"] != "available"
        )  # then eager runs everywhere, for that reason
        return "equal" if self.kind == "frozen" or without_kernels else self._check_reasons(way, seed)

    def _check_reasons(self, way, seed):
        """By which ops the network ran, and why not by others, in a run that is watched: it is not the one that was judged."""
        net = self.net(seed, fused=True)
        net.explained = []
        with dispatch.record() as rows, reasons_of_late(net) as reasons:
            error = attempt(way, net).error
        assert error is None, f"raises while somebody watches: {one_line(error)}"
        told = {row["reason"] for row in net.explained if row["backend"] in ("modules", "eager")}
        untold = [why for why in reasons if not re.search(TRACED, why)]
        assert told or not untold or not net.explained, f"explain() does not say {untold}"
        reasons = set(reasons) | told
        assert rows or reasons, "nothing is fused, and nobody says why"
        if way.why is None:
            assert not reasons, f"is not fused everywhere: {reasons}"
        elif self.kind in (
            "ours",
            "of our modules",
        ):  # a converted module may run another program without what was edited
            assert any(re.search(way.why, why) for why in reasons), f"the reason is not {way.why!r} but {reasons}"
        return (
            f"{'partly ' if rows and reasons else ''}{'modules: ' + '; '.join(sorted(reasons)) if reasons else 'fused'}"
        )


TRACED = "Proxy|jit.trace|function transform|forward-mode|compil"  # contexts in which explain() cannot stand


def reasons_of_late(net):
    return contextlib.nullcontext([]) if KINDS[net.kind].late else reasons_of(net.model)


class Ways(list):
    """The ways of a file: `@ways` or `@ways(why=..., ...)` before a function adds one."""

    def __call__(self, act=None, /, name=None, **fields):
        if act is None:
            return lambda act: self(act, name=name, **fields)
        self.append(Way(name or act.__name__.replace("_", " "), act, **fields))
        return act

    def edit(self, name, change, needs=(), **fields):
        """Adds the way in which change(net) is done before a step."""

        def act(net):
            lightly(change, net)
            net.step()

        self(act, name=name, needs=tuple(needs), **fields)

    def cells(self):
        """(number of the way, number of the kind, number of the mode, cell) of everything that makes sense."""
        for (w, way), (k, kind), (m, mode) in itertools.product(*map(enumerate, (self, KINDS, MODES))):
            known = KINDS[kind].parts.keys() | {"network"}
            sensible = kind in way.kinds and mode in way.modes and set(way.needs) <= known
            if sensible and not (kind == "frozen" and mode != "evaluation"):
                yield w, k, m, Cell(way, kind, mode)

    def test(self):
        """The test of the cells: every way with every kind, in the mode whose turn it is; by default with two of the kinds."""
        kinds, params = {}, []
        for w, k, _, cell in self.cells():
            modes = [mode for mode in MODES if mode in cell.way.modes] if cell.kind != "frozen" else ["evaluation"]
            if cell.mode != modes[(w + k) % len(modes)]:
                continue
            kinds[w] = turn = kinds.get(w, 0) + 1
            rare = cell.way.slow or (KINDS[cell.kind].late and w % 3)  # each conversion takes a tenth of a second
            default = (turn + w) % (15 if rare else 5) == 0
            marks = () if default else pytest.mark.exhaustive("the same way with other kinds of networks")
            params.append(pytest.param(cell, marks=marks, id=str(cell)))

        @pytest.mark.parametrize("cell", params)
        def test_cell(cell):
            cell.check()

        return test_cell
