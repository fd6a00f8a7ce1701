"""The networks of both tables, fused and eager, on the pretended GPU. Import it before torch."""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from emulator import pretended  # noqa: I001 (before torch)

import torch

import resnet_fused
from resnet_fused.measure.oracle import by_modules

MODES = ("evaluation", "step")


class Case(NamedTuple):
    """A network on images [batch, 3, size, size]; `channels_last`: weights and images. dtype: its name, or "autocast" for
    float32 under autocast to bfloat16."""

    network: str
    batch: int
    size: int
    dtype: str
    channels_last: bool

    def __str__(self):
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.network} {self.batch}x3x{self.size}x{self.size} {self.dtype} {layout}"

    def made(self):
        """(the network, the same by modules, images)."""
        dtype = getattr(torch, "float32" if self.dtype == "autocast" else self.dtype)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.device("cuda"):  # initial values take no time there
            model = getattr(resnet_fused, self.network)()
        model = model.to(dtype, memory_format=memory_format)
        shape = self.batch, 3, self.size, self.size
        x = torch.empty(shape, dtype=dtype, device="cuda", memory_format=memory_format)
        return model, by_modules(model), x

    def call(self, model, x, mode):
        """A function without arguments: one evaluation, or a training step without its optimiser."""
        model.train(mode == "step")
        low = torch.autocast("cuda", torch.bfloat16, enabled=self.dtype == "autocast")

        def evaluation():
            with torch.no_grad(), low:
                return model(x)

        def step():
            with low:
                out = model(x)
            out.backward(grad if out.dtype == grad.dtype else grad.to(out.dtype))
            model.zero_grad(set_to_none=True)

        if mode == "evaluation":
            return evaluation
        grad = torch.empty_like(evaluation())
        return step


recorded = pretended.recorded
