"""The engine of freeze(..., dtype="fp8"): convolutions in e4m3, the stem, the pool and the head in bfloat16.

The scales of the activations come from one evaluation of the model on the example input. What comes out is outside of the
promise of the other engines (twice eager's error): `errors` says how far off it is, beside eager bfloat16.
"""

import functools

import torch

from ... import dispatch
from ...kernels import e4m3 as fp8
from ...measure import remembered
from ...measure.accuracy import budget_used, exact
from ...measure.oracle import by_modules, in_float64
from ..freeze import ANOTHER_NETWORK
from ..gpu import check, choose, program
from ..gpu.choose import Way
from ..gpu.engine import StaticEngine, check_arguments
from . import layers as fp8_layers

COMPARED = 32  # images of the example, at most, whose logits are compared with float64


class Fp8Engine(StaticEngine):
    """A `StaticEngine` for x in float32 or bfloat16 -> logits in bfloat16, whose convolutions multiply e4m3 values.

    Attributes, besides those of StaticEngine:
        errors: when it was frozen, on up to 32 images of the example: relative error (2-norm) of the logits against float64 of
            "fp8" and of "bfloat16" (eager), the number of "images", and for how many the largest logit is where float64
            has it ("fp8 agrees", "bfloat16 agrees").
    """

    def __init__(self, model, example, graph, batch, calibration=None):
        self.largest = dict((calibration or {}).get("largest", {}))
        self.errors = (calibration or {}).get("errors")
        super().__init__(model, example, torch.bfloat16, graph, batch)
        self.options |= {"calibration": {"largest": self.largest, "errors": self.errors}}

    def _find_shapes(self, example):
        """And the largest values that arrive, in the model's own dtype, unless a file has brought them."""
        found = {}

        def note(name, value):
            found[name] = value.detach().abs().amax()

        handles = []
        for site in (site for block in self._blocks for site in block.all_sites()):
            handles.append(site.conv.register_forward_pre_hook(lambda m, args, name=site.name: note(name, args[0])))
        for site in (block.projection for block in self._blocks if block.projection is not None):
            name = fp8_layers.result(site)
            handles.append(site.bn.register_forward_hook(lambda m, args, out, name=name: note(name, out)))
        try:
            super()._find_shapes(example)
        finally:
            for handle in handles:
                handle.remove()
        if self.largest:
            return
        self.largest = {name: value.item() for name, value in found.items()}
        for name, value in self.largest.items():
            if not value < float("inf"):
                raise ValueError(
                    f"freeze: the largest value at {name} is {value} on example_input; fp8 needs finite values"
                )

    def _tune(self, without):
        self._forms = fp8_layers.forms(self._blocks, self.largest)
        if not self._forms:
            why = fp8_layers.why_not(self._blocks[0].sites[0])
            raise ValueError(f"freeze: no convolution can run in fp8, {self._blocks[0].sites[0].name}: {why}")
        choose.convolutions(self, [site for site in self._sites if site not in self._forms])
        for site, form in self._forms.items():
            able = [Way(name, make) for name, make in fp8_layers.options(site, form).items()]
            if self.device.type != "cuda":  # the interpreter: numbers, no speed
                able = able[:1]
            stored = tuple(scale is not None for scale in form)
            key = remembered.key("static_fp8", *site.key, stored, "graph" if self.graphed else "calls")
            where = self.device, self.graphed, choose.SECONDS
            timed = functools.partial(fp8_layers.seconds_of, site, form, able, *where)
            site.way, site.reason = choose.fastest(self, key, able, timed)
        self._pairs, (self._head_way, self._head_reason) = {}, choose.last(self)

    def _verify(self, example):
        """Is it the network of the model, does every layer compute what it should, and how far off are the logits?"""
        few = example[: check.CHECKED].to(torch.bfloat16)
        model = by_modules(self._model).eval()
        eager, oracle = model.to(torch.bfloat16)(few), in_float64(by_modules(self._model).eval())(exact(few))
        folded = super().module().to(self.device)(few)
        if (share := budget_used(folded, eager, oracle, channel_dim=None)) > ANOTHER_NETWORK:
            raise ValueError(
                f"freeze: the logits are {share:.3g} times the error budget away from the model's: the forward of "
                f"{type(self._model).__name__} or of a block is not that of a ResNet; use the live model"
            )
        shares = []
        steps = [step._replace(layer=_Watched(step.layer, shares)) for step in self._program]
        program.run(steps, self._places, self._filled(example))
        worst, name, way = max(shares)
        if not worst <= 1:
            raise ValueError(f"freeze: {name} ({way}) is {worst:.3g} times its rounding away from e4m3 arithmetic")
        if self.errors is None:
            self.errors = self._measured_errors(example)

    def _measured_errors(self, example):
        images = min(COMPARED, len(example))
        few = example[:images].to(torch.bfloat16)
        oracle = in_float64(by_modules(self._model).eval())(exact(few))
        with dispatch.backend(dispatch.EAGER.name):
            eager = by_modules(self._model).eval().to(torch.bfloat16)(few)
        found = {"images": images}
        for name, logits in (("fp8", self(example)[:images]), ("bfloat16", eager)):
            found[name] = ((logits.double() - oracle).norm() / oracle.norm()).item()
            found[f"{name} agrees"] = (logits.argmax(1) == oracle.argmax(1)).sum().item()
        return found

    def _measured_beside_live(self, example):
        """fp8 was asked for by name: where it is slower than the live model a warning says so, and it runs all the same."""
        self.seconds = {}
        if self.device.type != "cuda":
            return
        found = check.compare(self, example)
        self.seconds = {name: t.median for name, t in found.items()}
        if found["engine"].p20 > found["live"].p80:
            check.warn_of_slowness(self.seconds)

    dtype_name = "fp8"

    def module(self):
        """Refused: torch's own operators have no convolution of e4m3 values."""
        raise ValueError("module: an fp8 engine cannot be written in torch's operators; freeze in bfloat16 for that")

    @property
    def rows(self):
        rows = super().rows
        for row, site in zip(rows, self._sites, strict=False):
            if site in self._forms:
                row |= {"dtype": fp8.E4M3, "reason": f"{row['reason']}; {site.run.scales()}"}
            elif (why := fp8_layers.why_not(site)) is not None:
                row["reason"] += f"; in bfloat16: {why}"
        return rows

    @property
    def notes(self):
        """For explain(): the errors in a sentence."""
        e = self.errors
        return [
            f"logits against float64, {e['images']} images of the example: relative error {e['fp8']:.2g} in fp8, "
            f"{e['bfloat16']:.2g} in eager bfloat16; same largest logit: {e['fp8 agrees']} and {e['bfloat16 agrees']}"
        ]


class _Watched:
    """A layer of a program that, in e4m3, notes how far its result is from what it should be."""

    def __init__(self, layer, shares):
        self.layer, self.shares = layer, shares

    def __call__(self, x, residual, out):
        if not isinstance(self.layer, fp8_layers.Conv):
            return self.layer(x, residual, out)
        site = self.layer.site
        self.shares.append((fp8_layers.share(self.layer, x, residual, out), site.name, site.way.name))
        return out


@torch.no_grad()
def freeze_fp8(model, example, *, exact=False, graph=True, batch="exact", calibration=None):
    """An `Fp8Engine` for `model` on inputs of the shape of `example`; see `freeze` for the arguments and errors."""
    device = next(model.parameters()).device
    if (why := fp8.device_refusal(device)) is not None:
        raise ValueError(f"freeze: {why}")
    if exact:
        raise ValueError("freeze: exact=True and fp8 exclude each other: e4m3 has no infinity")
    if model.training:
        raise ValueError(
            "freeze: fp8 is calibrated in evaluation mode, the model is in training mode; call model.eval()"
        )
    check_arguments(model, example, graph, batch)
    return Fp8Engine(model, example, graph, batch, calibration)
