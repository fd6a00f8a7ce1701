"""Networks of every kind, in every mode, on a GPU that is not there: the checks of csrc/register see every launch."""

import contextlib

import networks
import pytest
import torch
from emulator import pretended

from resnet_fused import dispatch
from resnet_fused.measure.oracle import by_modules

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# {name: (dtype of weights and images, whether float32 may be TF32, dtype of autocast)}
ARITHMETIC = {
    "float32": (torch.float32, False, None),
    "tf32": (torch.float32, True, None),
    "float16": (torch.float16, True, None),
    "bfloat16": (torch.bfloat16, True, None),
    "autocast": (torch.float32, True, torch.bfloat16),
}
MODES = ("evaluation", "gradients", "training", "memory-efficient")


@contextlib.contextmanager
def arithmetic(name):
    dtype, tf32, low = ARITHMETIC[name]
    torch.backends.cudnn.allow_tf32 = tf32
    with torch.autocast("cuda", low) if low else contextlib.nullcontext():
        yield dtype


def run(model, x, mode):
    """(output, {name: gradient})"""
    if mode == "evaluation":
        with torch.no_grad():
            return model(x), {}
    out = model(x)
    out.float().sum().backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


def told(t):
    """All that can be told of a tensor without its values; the stride of a dimension with one element means nothing."""
    return (
        None
        if t is None
        else (t.shape, t.dtype, t.device, [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1])
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("numbers", ARITHMETIC)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_launch_is_right(name, numbers, mode):
    """And results and gradients are, as tensors, what eager's are; nothing falls back to eager (STRICT)."""
    layouts = [(w, x) for w in (CONTIGUOUS, CHANNELS_LAST) for x in (CONTIGUOUS, CHANNELS_LAST)]
    mixed = numbers in ("float32", "autocast")  # for the others weights and images of one layout
    for weights, layout in (pair for pair in layouts if mixed or pair[0] is pair[1]):
        with arithmetic(numbers) as dtype:
            model = networks.network(name, dtype, weights)
            model.memory_efficient = mode == "memory-efficient"
            model.train(mode in ("training", "memory-efficient"))
            eager = by_modules(model)
            for batch, size in zip((1, 3), networks.NETWORKS[name][2] * 2, strict=False):
                if batch == 1 and model.training:
                    batch = 2  # one value per channel has no statistics
                x = networks.images(name, batch, size, dtype, layout)
                out, grads = run(model, x, mode)
                expected, of_eager = run(eager, x, mode)
                assert told(out) == told(expected)
                assert {n: told(g) for n, g in grads.items()} == {n: told(g) for n, g in of_eager.items()}
                model.zero_grad(set_to_none=True), eager.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["basic", "gray", "cifar-gray", "torchvision"])
def test_every_convolution_is_fused(name):
    """Also those of images with one channel and of maps with one pixel, whatever the layout of weights and images."""
    for weights in (CONTIGUOUS, CHANNELS_LAST):
        model = networks.network(name, torch.bfloat16, weights).eval()
        x = networks.images(name, 1, networks.NETWORKS[name][2][0], torch.bfloat16)
        with torch.no_grad(), dispatch.record() as rows:
            model(x)
        assert {choice.backend for op, _, choice in rows} == {"cuda"}, rows
        model.train()
        with dispatch.record() as rows, pretended.recorded() as record:
            model(networks.images(name, 256, networks.NETWORKS[name][2][0], torch.bfloat16)).sum().backward()
        assert record.count("ours::conv_stats") > 0
        assert not [row for row in rows if row[2].reason.startswith("contiguous")], rows
