"""freeze(model, example): the fastest evaluation of a ResNet, as a snapshot of its weights.

Batch norm is folded into the convolutions in float64 and rounded once, the weights are packed once, every convolution is
one call with its residual and ReLU, and activations stay channels_last. For every shape of convolution in the network the
fastest way is measured with the example input. Unlike the live model a snapshot goes stale: see `Engine.refresh`.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels import e4m3 as fp8
from ..kernels import layout
from ..measure import remembered
from ..measure.accuracy import budget_used, exact
from ..measure.oracle import by_modules, in_float64
from .cpu import one_call
from .cpu.convolutions import WinogradF4, WinogradF4Taps, ways
from .network import Block, Site, best_of_calls, check_model, check_site, measure, pool_of, stages

DTYPES = (torch.float32, torch.bfloat16)
ANOTHER_NETWORK = 10.0  # times the error budget: more than any rounding
CALIBRATION = 4  # images at most, that decide about F(4x4,3x3) in bfloat16
F4 = (WinogradF4, WinogradF4Taps)
DEEP = 256  # channels: by layer times F(2x2) costs ResNet-34, bfloat16, batch 8, 2.9 ms from here on, 7.4 in the layers before
TUNING_SECONDS = 3.0  # at most, for a whole network: a bound on freeze(), not on what it finds


class Engine:
    """A frozen ResNet: `engine(x)` -> logits [N, num_classes] in the engine's dtype, without autograd.

    x: [N, 3, H, W], any batch and size, in float32 or the engine's dtype; it is converted and not modified.
    `rows` tells for every convolution what runs it and why. Thread-safe: a call keeps no state.
    """

    def __init__(self, model, example, dtype, exact):
        check_model(model)
        self.dtype, self.exact, self._model = dtype, exact, model
        self.example_shape, self.options = tuple(example.shape), {"exact": exact}
        self.entries = {}  # what the choices come from: {key: tuning.Entry}
        pool = pool_of(model)
        standard = isinstance(pool, nn.MaxPool2d) and (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (
            3, 2, 1, 1,
        )  # fmt: skip
        self._pool = None if standard and not pool.ceil_mode else pool
        self._stem = Site("conv1", model.conv1, model.bn1, pool=self._pool is None)
        self._blocks = [
            Block(f"{name}.{j}", block)
            for name, blocks in stages(model)
            for j, block in enumerate(blocks)
        ]  # fmt: skip
        self._sites = [self._stem, *(site for block in self._blocks for site in block.all_sites())]
        for site in self._sites:
            check_site(site)
        self._find_shapes(example)
        self._tune(without=())
        self._settle(example)
        self._check(example)

    def _check(self, example):
        """Is this the network that the model computes, and within its error budget?

        F(4x4,3x3) has 1.8 times the RMS error of a direct convolution in a layer in float32, 2.9 times in bfloat16
        (docs/winograd.md). That fits the budget of a whole network, but nobody promises it for every network. In bfloat16,
        where folding alone leaves less than eager's error, the logits must not be further off than eager's.
        """
        half = self.dtype == torch.bfloat16
        few = example[: CALIBRATION if half and self._uses_f4() else 1]
        share, worse = self._errors(few)
        for channels in (DEEP, 0):
            if self._uses_f4(channels) and (share > 1 or (half and worse)):
                self._tune(without=F4, channels=channels)
                self._settle(torch.randn(self.example_shape).to(example.dtype))
                share, worse = self._errors(few)
        if share > ANOTHER_NETWORK:
            raise ValueError(
                f"freeze: the logits are {share:.3g} times the error budget away from the model's: the forward of "
                f"{type(self._model).__name__} or of a block is not that of a ResNet; use the live model"
            )

    def _uses_f4(self, channels=0):
        """Whether a layer of so many channels or more is run by F(4x4,3x3)."""
        return any(site.way in F4 and site.conv.in_channels >= channels for site in self._sites)

    def _find_shapes(self, example):
        """One pass by modules: what arrives at every convolution."""
        shapes = {}
        handles = [
            site.conv.register_forward_pre_hook(lambda conv, args: shapes.__setitem__(conv, tuple(args[0].shape)))
            for site in self._sites
        ]
        was_training = [m for m in self._model.modules() if m.training]
        try:
            self._model.eval()
            self._model(example.to(self._model.conv1.weight.dtype))
        finally:
            for m in was_training:
                m.training = True
            for handle in handles:
                handle.remove()
        for site in self._sites:
            site.shape = shapes[site.conv]

    def _errors(self, example):
        """The engine's error against float64 as a share of twice the model's own (accuracy.py); whether its norm is larger."""
        example = example.to(self.dtype)
        model = copy.deepcopy(self._model).eval()
        ours, eager = self(example), by_modules(model).to(self.dtype)(example)
        oracle = in_float64(model)(exact(example))
        error, of_eager = ((y.double() - oracle).norm() for y in (ours, eager))
        return budget_used(ours, eager, oracle, channel_dim=None), not error <= of_eager

    def _tune(self, without, channels=0):
        """The fastest way for each layer; none of `without` where there are so many channels or more."""
        groups = {}
        for site in self._sites:
            groups.setdefault(site.key, []).append(site)
        for sites in groups.values():
            able = ways(sites[0], self.dtype, self.exact)
            if sites[0].conv.in_channels >= channels:
                able = [way for way in able if way not in without]
            if len(able) == 1:
                seconds, reason = {able[0]: 0.0}, "the only way for this layer"
            else:
                seconds = self._seconds(sites, able, TUNING_SECONDS / len(groups))
                best, second, *_ = sorted(seconds, key=seconds.get)
                reason = f"{1e3 * seconds[best]:.2f} ms; {second.name}: {1e3 * seconds[second]:.2f} ms"
            for site in sites:
                site.ranking = sorted(seconds, key=seconds.get)
                site.way, site.reason = site.ranking[0], reason

    def _settle(self, example):
        """Reads the weights into the ways that were chosen; where only some of them are the library's own, and it has one for
        every layer, the network in one call of the library is measured beside them."""
        self.refresh()
        fastest = {site: site.way for site in self._sites}
        own = {site: one_call.own_way(site) for site in self._sites}
        if None in own.values() or own == fastest:
            return

        def use(ways):
            for site in self._sites:
                site.way = ways[site]
            self.refresh()

        use(own)
        if self._whole is not None:
            key = remembered.key("frozen network", self.dtype, *((*site.key, own[site].name) for site in self._sites))
            able = (one_call.Whole, one_call.ByLayers)

            def measure():
                seconds = {one_call.Whole: best_of_calls(self, example)}
                use(fastest)
                return {**seconds, one_call.ByLayers: best_of_calls(self, example)}

            seconds = self._known(key, able, measure)
            if seconds[one_call.Whole] <= seconds[one_call.ByLayers]:
                use(own)
                for site in self._sites:
                    if own[site] is not fastest[site]:
                        site.reason = f"in one call with all layers; alone: {site.reason}"
                return
        use(fastest)

    def _seconds(self, sites, able, budget):
        """{way: seconds per call}: known from this machine's tuning table, else measured and kept there."""
        return self._known(self._key(sites[0]), able, lambda: self._measure(sites, able, budget))

    def _known(self, key, able, measure):
        """{way: seconds per call} of the ways `able` under `key`: remembered, else what `measure()` finds."""
        device = self._model.conv1.weight.device
        by_name = {way.name: way for way in able}
        entry = remembered.remembered(device, key, by_name)
        if entry is None:
            entry = remembered.entry({way.name: s for way, s in measure().items()})
            remembered.table(device).store({key: entry})
        self.entries[key] = entry
        return {by_name[name]: seconds for name, seconds in entry.seconds.items()}

    def _key(self, site):
        return remembered.key("frozen", self.dtype, *site.key)

    def _measure(self, sites, able, budget):
        return measure(sites, able, self.dtype, budget)

    @torch.no_grad()
    def refresh(self):
        """Reads the model's weights and statistics again; what was measured stays."""
        for site in self._sites:
            site.run = site.way(site, self.dtype)
        fc = self._model.fc
        bias = None if fc.bias is None else fc.bias.detach().to(self.dtype, copy=True)
        self._fc = fc.weight.detach().to(self.dtype, copy=True), bias
        self._whole = None if one_call.why_not(self) else one_call.Whole(self)

    def save(self, path):
        """Writes the engine to a file that `resnet_fused.load_engine` reads; see frozen/file.py."""
        from .file import save

        save(self, path)

    def module(self):
        """The frozen network as an nn.Module of torch's own operators, for torch.export, AOTInductor and ONNX."""
        from .export import FoldedResNet

        model, pool = self._model, self._pool or nn.MaxPool2d(3, 2, 1)
        return FoldedResNet(self._stem, pool, self._blocks, model.avgpool, model.fc, self.dtype)

    @property
    def dtype_name(self):
        return str(self.dtype).removeprefix("torch.")

    @property
    def rows(self):
        return [
            {
                "name": s.name,
                "op": s.op,
                "shape": s.shape,
                "dtype": self.dtype,
                "backend": s.way.name,
                "reason": s.reason,
            }
            for s in self._sites
        ]

    @torch.no_grad()
    def __call__(self, x):
        channels = self._stem.conv.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"engine: x should be [N, {channels}, H, W], got {tuple(x.shape)}")
        if x.device.type != "cpu":
            raise ValueError(f"engine: x is on {x.device}, the engine was frozen on cpu")
        if x.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"engine: x is {x.dtype}, the engine takes torch.float32 or {self.dtype}")
        if self._whole is not None:
            return self._whole(x)
        if not getattr(self._stem.run, "any_layout", False):
            x = x.to(self.dtype).contiguous(memory_format=layout.CHANNELS_LAST)
        x = self._stem.run(x)
        if self._pool is not None:
            x = self._pool(x)
        for block in self._blocks:
            x = block(x)
        return F.linear(torch.flatten(self._model.avgpool(x), 1), *self._fc)


@torch.no_grad()
def freeze(model, example_input, *, dtype=None, exact=False, graph=True, batch="exact"):
    """An engine that computes `model.eval()(x)` as fast as the device of the model can.

    Args:
        model: a ResNet, of this package or with torchvision's structure. It is not changed.
        example_input: [N, 3, H, W] on its device; the batch and size to tune for. On a CPU other sizes run too.
        dtype: torch.float32, torch.bfloat16, on a GPU also torch.float16; None: the dtype of the model. "fp8" (or
            torch.float8_e4m3fn), on a GPU of compute capability 8.9 or later: convolutions of 8-bit floats, calibrated on the
            example, outside of the promise of twice eager's error (docs/fp8.md).
        exact: CPU: a NaN or an infinity comes out where eager has it. Without it Winograd spreads one to the 16
            outputs of its tile, the matrix unit (AMX, float32) makes an infinity a NaN, and oneDNN's ReLU makes a NaN 0, as
            in `torch.compile` with freezing.
        graph: GPU: capture a CUDA graph; False: launch every kernel by itself.
        batch: GPU: "exact" refuses other batches than that of the example; "pad" fills them up or cuts them in pieces.

    Returns:
        `Engine` on a CPU, `frozen_static.StaticEngine` on a GPU (fp8: `frozen_fp8.Fp8Engine`). That one is measured beside
        the live model: where its layers are slower, a snapshot of the live model runs in their place (not of an fp8 engine),
        and `rows` says so.

    Raises:
        TypeError: not a ResNet, or a part that cannot be folded (named).
        ValueError: a dtype, a batch policy or an example that does not fit; a layer outside of the error budget (named); a
            forward that is not that of a ResNet.
    """
    if fp8.asked(dtype):
        from .fp8.engine import freeze_fp8

        return freeze_fp8(model, example_input, exact=exact, graph=graph, batch=batch)
    device = next(model.parameters()).device
    if device.type != "cpu":
        from .gpu.engine import freeze_static

        return freeze_static(model, example_input, dtype=dtype, graph=graph, batch=batch)
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"freeze: dtype should be torch.float32 or torch.bfloat16, not {dtype}")
    if example_input.dim() != 4 or example_input.numel() == 0:
        raise ValueError(f"freeze: example_input should be a non-empty [N, 3, H, W], got {tuple(example_input.shape)}")
    return Engine(model, example_input, dtype, exact)
