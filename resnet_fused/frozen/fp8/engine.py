"""The engine of freeze(..., dtype="fp8"): convolutions in e4m3; the stem, the pool and the head in bfloat16.

The scales of the activations come from one evaluation of the model on the example input. The result is outside of the
promise of the other engines (twice eager's error): `errors` has its error beside the error of eager bfloat16.
"""

import functools

import torch

from ... import dispatch
from ...kernels import e4m3 as fp8
from ...measure import remembered
from ...measure.accuracy import exact
from ...measure.oracle import by_modules, in_float64
from .. import check
from ..engine import Engine, without_autocast
from ..export import FoldedNetwork
from ..gpu import choose, measure, program
from ..gpu.engine import head_rows
from ..gpu.replay import Replay, check_arguments, first_images
from ..network import ConvBn
from . import layers as fp8_layers

COMPARED = 32  # images of the example, at most, whose logits are compared with float64


class Fp8Engine(Engine):
    """An `Engine` of fixed shapes like `GpuEngine`, for x in float32 or bfloat16 -> logits in bfloat16. Its
    convolutions multiply e4m3 values.

    Attributes, besides those of GpuEngine:
        errors: measured when the engine was frozen, on up to 32 images of the example: relative error (2-norm) of the logits
            against float64 of "fp8" and of "bfloat16" (eager), the number of "images", and for how many images the largest
            logit is where float64 has it ("fp8 agrees", "bfloat16 agrees").
    """

    dtype_name = "fp8"

    def __init__(self, model, example, graph, batch, calibration=None):
        super().__init__(model, example, torch.bfloat16, {"graph": graph, "batch": batch})
        self.batch, self.graphed, self.seconds = batch, graph, {}
        self.largest = dict((calibration or {}).get("largest", {}))
        self.errors = (calibration or {}).get("errors")
        self._forms, self._program, self._replay, self._ends = {}, None, None, None

    def _read(self, example):
        """Also finds the largest value of each input, in the model's own dtype, unless a file has brought them."""
        given = bool(self.largest)
        self._sizes = {}
        super()._read(example)
        if given:
            return
        self.largest = {name: value.item() for name, value in self._sizes.items()}
        for name, value in self.largest.items():
            if not value < float("inf"):
                raise ValueError(
                    f"freeze: the largest value at {name} is {value} on example_input; fp8 needs finite values"
                )

    def _see(self, step, x, y):
        super()._see(step, x, y)
        if isinstance(step, ConvBn) and step is not self._convolutions[0]:  # the stem stays in bfloat16
            self._sizes[step.name] = x.abs().amax()
            if not step.relu and not step.adds:
                self._sizes[fp8_layers.result(step)] = y.abs().amax()

    def _choose(self, example):
        self._forms = fp8_layers.forms(self._steps, self.largest)
        if not self._forms:
            first = self._convolutions[1]
            raise ValueError(f"freeze: no convolution can run in fp8, {first.name}: {fp8_layers.why_not(first)}")
        choose.convolutions(self, [step for step in self._convolutions if step not in self._forms])
        for step, form in self._forms.items():
            able = choose.candidates(fp8_layers.options(step, form))
            if self.device.type != "cuda":  # the interpreter gives numbers, but no speed
                able = able[:1]
            stored = tuple(scale is not None for scale in form)
            key = remembered.key("static_fp8", *step.key, stored, "graph" if self.graphed else "calls")
            where = self.device, self.graphed, choose.SECONDS
            timed = functools.partial(fp8_layers.seconds_of, step, form, able, *where)
            step.choice, step.reason = choose.fastest(self, key, able, timed)
        self._ends = choose.heads(self)

    def _load(self):
        for step in self._convolutions:
            step.run = step.choice.make(step, self.dtype)
        heads = {head: chosen.candidate.make(head, self.dtype) for head, chosen in self._ends.items()}
        self._program = program.Program(self._steps, self._result, heads, {}, self.dtype, self.device)
        self._replay = Replay(self._program, self.example_shape, self.dtype, self.device, self.graphed, self.batch)
        self.memory = self._program.memory

    def _prove(self, example):
        """Checks that this is the network of the model and that every layer computes what it should; measures the error
        of the logits."""
        few = example[: check.CHECKED].to(torch.bfloat16)
        folded = FoldedNetwork(self._steps, self._result, self.dtype).to(self.device)(few)
        check.check_network(self._model, check.errors(self._model, folded, few).share)
        shares = []
        launches = [
            launch._replace(layer=_Watched(launch.layer, shares))
            if isinstance(launch.layer, fp8_layers.Conv)
            else launch
            for launch in self._program.launches
        ]
        program.run(launches, self._program.values, self._replay.filled(example), self._program.kept)
        worst = max(shares)
        if not worst.share <= 1:
            raise ValueError(
                f"freeze: {worst.name} ({worst.kernel}) is {worst.share:.3g} times its rounding away from e4m3 arithmetic"
            )
        if self.errors is None:
            self.errors = self._errors(example)
        self.options |= {"calibration": {"largest": self.largest, "errors": self.errors}}
        e = self.errors
        self.notes = [
            f"logits against float64, {e['images']} images of the example: relative error {e['fp8']:.2g} in fp8, "
            f"{e['bfloat16']:.2g} in eager bfloat16; same largest logit: {e['fp8 agrees']} and {e['bfloat16 agrees']}"
        ]
        self._compare_with_live(example)

    def _errors(self, example):
        images = min(COMPARED, len(example))
        few = example[:images].to(torch.bfloat16)
        oracle = in_float64(by_modules(self._model).eval())(exact(few))
        with dispatch.backend(dispatch.EAGER.name):
            eager = by_modules(self._model).eval().to(torch.bfloat16)(few)
        found = {"images": images}
        for name, logits in (("fp8", first_images(self(example), images)), ("bfloat16", eager)):
            found[name] = ((logits.double() - oracle).norm() / oracle.norm()).item()
            found[f"{name} agrees"] = (logits.argmax(1) == oracle.argmax(1)).sum().item()
        return found

    def _compare_with_live(self, example):
        """The caller asked for fp8 by name. Where the engine is slower than the live model it runs all the same, and a
        warning says so."""
        if self.device.type != "cuda":
            return
        found = measure.beside_live(self, example)
        self.seconds = {name: t.median for name, t in found.items()}
        if found["engine"].p20 > found["live"].p80:
            measure.warn_of_slowness(self.seconds)

    @torch.no_grad()
    def _refresh(self):
        """Reads them into the memory that the graph reads. The scales stay."""
        with self._replay.lock:
            self._program.load()

    def module(self):
        """Refused: torch's own operators have no convolution of e4m3 values."""
        raise ValueError("module: an fp8 engine cannot be written in torch's operators; freeze in bfloat16 for that")

    @property
    def rows(self):
        rows = [*super().rows, *head_rows(self)]
        for row, step in zip(rows, self._convolutions, strict=False):
            if step in self._forms:
                row |= {"dtype": fp8.E4M3, "reason": f"{row['reason']}; {step.run.scales()}"}
            elif (why := fp8_layers.why_not(step)) is not None:
                row["reason"] += f"; in bfloat16: {why}"
        return rows

    @torch.no_grad()
    @without_autocast
    def __call__(self, x):
        return self._replay(x)


class _Watched:
    """A convolution in e4m3 that notes the error of its result."""

    def __init__(self, layer, shares):
        self.layer, self.shares, self.writes_out = layer, shares, layer.writes_out

    def __call__(self, x, residual, out):
        step = self.layer.step
        self.shares.append(check.Worst(fp8_layers.share(self.layer, x, residual, out), step.name, step.choice.name))
        return out


@torch.no_grad()
def freeze_fp8(model, example, *, exact=False, graph=True, batch="exact", calibration=None):
    """An `Fp8Engine` for `model` on inputs of the shape of `example`; see `freeze` for the arguments and errors."""
    device = next(model.parameters()).device
    if (why := fp8.why_not(device)) is not None:
        raise ValueError(f"freeze: {why}")
    if exact:
        raise ValueError("freeze: exact=True and fp8 exclude each other: e4m3 has no infinity")
    if model.training:
        raise ValueError(
            "freeze: fp8 is calibrated in evaluation mode, the model is in training mode; call model.eval()"
        )
    check_arguments(model, example, graph, batch)
    return Fp8Engine(model, example, graph, batch, calibration)._made(example)
