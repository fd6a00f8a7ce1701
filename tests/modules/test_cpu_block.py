"""A block in one call of the library: bit for bit what the ops give one by one, and only where nobody could tell."""

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.kernels import library
from resnet_fused.measure import remembered
from resnet_fused.models.resnet import BasicBlock, Bottleneck, conv1x1
from resnet_fused.modules import one_call
from resnet_fused.modules.zero_pad import ZeroPadShortcut

CL, NCHW = torch.channels_last, torch.contiguous_format
pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=f"{library.why_absent()}")


def make(cls=BasicBlock, inplanes=64, planes=64, stride=1, dtype=torch.float32, weights=CL, pad=False, **kwargs):
    torch.manual_seed(0)
    out = planes * cls.expansion
    down = None
    if pad:
        down = ZeroPadShortcut(inplanes, out, stride)
    elif stride != 1 or inplanes != out:
        down = nn.Sequential(conv1x1(inplanes, out, stride), nn.BatchNorm2d(out))
    block = cls(inplanes, planes, stride, down, **kwargs)
    for bn in block.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
            nn.init.uniform_(bn.weight, 0.5, 2)
            nn.init.normal_(bn.bias)
    return block.to(dtype).to(memory_format=weights).eval()


def image(channels=64, size=14, batch=2, dtype=torch.float32, memory_format=CL):
    return torch.randn(batch, channels, size, size).to(dtype).to(memory_format=memory_format)


@pytest.fixture
def calls(monkeypatch):
    """One entry for every block asked for: whether the library ran it."""
    found, evaluate = [], one_call.evaluate

    def counted(*args):
        out = evaluate(*args)
        found.append(out is not None)
        return out

    monkeypatch.setattr(one_call, "evaluate", counted)
    return found


def one_by_one(block, x):
    with dispatch.record():  # somebody watches: every op by itself
        return block(x)


CASES = {
    "identity": ({}, {}),
    "winograd refused, one tile": ({}, {"size": 4, "batch": 1}),
    "ragged": ({}, {"size": 9}),
    "projection, stride 2": ({"planes": 128, "stride": 2}, {}),
    "zero-padded shortcut": ({"planes": 96, "stride": 2, "pad": True}, {"size": 13}),
    "zero-padded shortcut, contiguous": (
        {"planes": 96, "stride": 2, "pad": True, "weights": NCHW},
        {"size": 13, "memory_format": NCHW},
    ),
    "contiguous weights": ({"weights": NCHW}, {}),
    "contiguous weights that outweigh the input": (
        {"inplanes": 256, "planes": 256, "weights": NCHW},
        {"channels": 256, "size": 7, "batch": 1},
    ),
    "contiguous input and weights": ({"weights": NCHW}, {"memory_format": NCHW}),
    "bottleneck": ({"cls": Bottleneck, "inplanes": 256}, {"channels": 256}),
    "bottleneck, projection, stride 2": ({"cls": Bottleneck, "stride": 2}, {}),
    "bottleneck, groups, dilation": (
        {"cls": Bottleneck, "inplanes": 256, "groups": 4, "base_width": 16, "dilation": 2},
        {"channels": 256},
    ),
    "bottleneck, contiguous": ({"cls": Bottleneck, "weights": NCHW}, {"memory_format": NCHW}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES)
def test_bits_of_the_ops(case, dtype, calls):
    of_block, of_image = CASES[case]
    block, x = make(**of_block, dtype=dtype), image(**of_image, dtype=dtype)
    before = x.clone()
    with torch.no_grad():
        expected = one_by_one(block, x)
        for _ in range(2):
            out = block(x)
            assert torch.equal(out, expected) and out.stride() == expected.stride()
    assert calls == [False, True, True] and torch.equal(x, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_values_that_are_not_finite(value, calls):
    block, x = make(), image()
    x[1, 3, 5, 6] = value
    with torch.no_grad():
        torch.testing.assert_close(block(x), one_by_one(block, x), rtol=0, atol=0, equal_nan=True)
    assert calls == [True, False]


def test_nothing_derived_from_weights_is_kept(calls):
    block, x = make(), image()
    changes = [
        lambda: block.conv1.weight.data.mul_(2),
        lambda: setattr(block, "conv2", nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=CL)),
        lambda: block.bn1.running_var.add_(1),
        lambda: setattr(block.bn2, "eps", 0.5),
        lambda: setattr(block.bn2, "bias", nn.Parameter(torch.randn(64))),
        lambda: block.to(memory_format=NCHW),
    ]
    with torch.no_grad():
        for change in changes:
            before = block(x)
            change()
            assert torch.equal(block(x), one_by_one(block, x))
            assert block.conv1.weight.is_contiguous() or not torch.equal(before, block(x))
    assert calls[0::4] == [True] * len(changes)


class Counting(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen = [*getattr(self, "seen", []), function]
        return function(*args, **(kwargs or {}))


REFUSED = {
    "training": lambda block, x: block.train()(x),
    "one batch norm in training": lambda block, x: (block.bn2.train(), block(x)),
    "gradients wanted": lambda block, x: torch.enable_grad()(block)(x),
    "autocast": lambda block, x: torch.autocast("cpu", torch.bfloat16)(block)(x),
    "no weight in a batch norm": lambda block, x: (setattr(block, "bn1", nn.BatchNorm2d(64, affine=False).eval()), block(x)),
    "no running statistics": lambda block, x: (
        setattr(block, "bn1", nn.BatchNorm2d(64, track_running_stats=False).eval()), block(x)
    ),
    "eager was asked for": lambda block, x: _inside(dispatch.backend("eager"), block, x),
    "a mode sees torch's functions": lambda block, x: _inside(Counting(), block, x),
    "a hook": lambda block, x: (block.conv1.register_forward_hook(lambda *a: None), block(x)),
    "a buffer became an attribute": lambda block, x: (
        delattr(block.bn1, "running_mean"), setattr(block.bn1, "running_mean", torch.zeros(64)), block(x)
    ),
    "a zero-padded shortcut with a hook": lambda block, x: _hooked(make(planes=96, pad=True))(x),
    "another shortcut": lambda block, x: (setattr(block, "downsample", nn.Identity()), block(x)),
    "sliced input": lambda block, x: block(torch.cat([x, x], 1)[:, 64:]),
    "an empty batch": lambda block, x: block(x[:0]),
    "one channel": lambda block, x: make(inplanes=1, planes=1)(image(channels=1)),
    "one pixel": lambda block, x: block(image(size=1)),
}  # fmt: skip


def _hooked(block):
    block.downsample.register_forward_hook(lambda *args: None)
    return block


def _inside(context, block, x):
    with context:
        return block(x)


@pytest.mark.parametrize("case", REFUSED)
def test_left_to_the_ops(case, calls):
    with torch.no_grad(), dispatch.strict(False):
        REFUSED[case](make(), image())
    assert not any(calls)


def test_refusals_are_torchs(calls):
    short = make()
    short.bn1.running_mean = torch.zeros(63)
    with torch.no_grad():
        for block, x in ((short, image()), (make(), image(channels=32))):
            with pytest.raises(RuntimeError) as ours:
                block(x)
            with pytest.raises(RuntimeError) as eager:
                block.forward_by_modules(x)
            assert str(ours.value) == str(eager.value)
    assert not any(calls)


def test_follows_the_dispatcher(calls, monkeypatch):
    """What is asked for or measured later changes what runs; a backend that was replaced is not passed over."""
    block, x = make(), image()
    with torch.no_grad():
        winograd = block(x)
        with dispatch.backend("torch"):
            direct = block(x)
            assert torch.equal(direct, one_by_one(block, x)) and not torch.equal(direct, winograd)
        table = remembered.table(x.device)
        with dispatch.record_keys() as keys:
            block(x)
        monkeypatch.setattr(table, "entries", table.entries | {k: remembered.entry({"torch": 1.0}) for k in keys})
        assert torch.equal(block(x), direct)
        monkeypatch.setattr(table, "entries", {})
        assert torch.equal(block(x), winograd)
        native = dispatch.BACKENDS["native"]
        kernels = {op: kernel for op, kernel in native.kernels.items() if op != "residual_block"}
        monkeypatch.setitem(dispatch.BACKENDS, "native", native._replace(kernels=kernels))
        assert torch.equal(block(x), winograd)
    assert calls == [True, True, False, False, True, True, False]


def test_the_network_takes_it(calls):
    model = resnet_fused.resnet18().eval()
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
    assert calls == [True] * 8
