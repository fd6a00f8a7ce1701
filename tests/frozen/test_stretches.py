"""Networks whose stretches hold more than the convolutions of a ResNet: depthwise convolutions, gates, pools, activations."""

import pytest
import torch
from one_call_cases import measured
from torch import nn

import resnet_fused
from resnet_fused.frozen import check
from resnet_fused.frozen.cpu import one_call
from resnet_fused.kernels import library
from resnet_fused.measure.oracle import with_lively_norms

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))


def conv(channels, to, kernel, act=None, **options):
    layers = [nn.Conv2d(channels, to, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(to)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class Squeeze(nn.Module):
    """Gates of a map: its mean, two convolutions, a product."""

    def __init__(self, channels, gate):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), gate()

    def forward(self, x):
        return x * self.gate(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """A block of MobileNet and its kin."""

    def __init__(self, act, gate, kernel=3, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            conv(20, 40, 1, act),
            conv(40, 40, kernel, act, groups=40, stride=stride),
            Squeeze(40, gate),
            conv(40, 20, 1),
        )
        self.adds = stride == 1

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


class Residual(nn.Module):
    """A block with squeeze and excitation ahead of its sum."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(20, 20, 3, nn.ReLU), conv(20, 20, 3), Squeeze(20, nn.Sigmoid))

    def forward(self, x):
        return torch.relu(self.body(x) + x)


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(20, 7))


NETS = {
    "hardswish": lambda: [Inverted(nn.Hardswish, nn.Hardsigmoid), Inverted(nn.Hardswish, nn.Hardsigmoid, 5, 2), head()],
    "silu": lambda: [Inverted(nn.SiLU, nn.Sigmoid, 5), Inverted(nn.SiLU, nn.Sigmoid, 3, 2), head()],
    "relu6": lambda: [Inverted(nn.ReLU6, nn.Sigmoid), head()],
    "residual": lambda: [Residual(), Residual(), head()],
    "grouped": lambda: [
        conv(20, 32, 1, nn.ReLU), conv(32, 32, 3, nn.ReLU, groups=8), conv(32, 32, 3, nn.SiLU, groups=4, stride=2),
        conv(32, 32, 3, groups=2), conv(32, 20, 1), head(),
    ],
    "pools": lambda: [nn.MaxPool2d(2), conv(20, 20, 3, nn.ReLU), nn.MaxPool2d(3, 2, 1), conv(20, 20, 1), nn.MaxPool2d(2, 2)],
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    return with_lively_norms(nn.Sequential(conv(3, 20, 3, nn.ReLU), *NETS[name]())).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_they_are_one_call(name, dtype, monkeypatch, tmp_path):
    measured(monkeypatch, one_call.KINDS, whole=1.0, layers=2.0)
    model, x = made(name), torch.randn(2, 3, 24, 20)
    engine = resnet_fused.freeze(model, x, dtype=dtype)
    assert engine._calls.one_call is not None and engine.notes == []
    for shape in ((2, 3, 24, 20), (1, 3, 17, 33), (3, 3, 9, 9)):
        x = torch.randn(shape)
        before = x.clone()
        assert check.errors(model, engine(x), x).share <= 1
        assert torch.equal(x, before)
    dense = x.to(dtype).contiguous(memory_format=torch.channels_last)
    before = dense.clone()
    assert torch.equal(engine(dense), engine(dense.contiguous())) and torch.equal(dense, before)
    engine.save(tmp_path / "engine.safetensors")
    assert torch.equal(resnet_fused.load_engine(tmp_path / "engine.safetensors")(x), engine(x))


def test_a_stretch_reads_a_dense_input_where_it_lies(monkeypatch):
    """The input is also a residual, which no step may write to."""
    measured(monkeypatch, one_call.KINDS, whole=1.0, layers=2.0)
    torch.manual_seed(0)
    model = with_lively_norms(nn.Sequential(Inverted(nn.ReLU, nn.Sigmoid), Inverted(nn.ReLU, nn.Sigmoid))).eval()
    x = torch.randn(2, 20, 9, 8).contiguous(memory_format=torch.channels_last)
    engine = resnet_fused.freeze(model, x)
    whole, kinds = engine._calls.one_call, {}
    for dense, images in ((True, x), (False, x.contiguous()), (False, x[:, :, :, ::2])):
        before = images.clone()
        assert check.errors(model, engine(images), images).share <= 1 and torch.equal(images, before)
        kinds[dense] = whole.encodings[images.shape, dense, torch.get_num_threads()].numbers[:, 0].tolist()
    assert one_call.COPY in kinds[False] and one_call.COPY not in kinds[True]
    assert torch.equal(engine(x), engine(x.contiguous()))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        pytest.param(19, 2, "no grouped convolution", id="width"),
        pytest.param(19, 0, "no grouped convolution", id="no-width"),
        pytest.param(13, 3, "no grouped convolution", id="stride"),
        pytest.param(10, 16, "does not keep its channels", id="channels"),
        pytest.param(16, 7, "has activation 7", id="activation"),
    ],
)
def test_numbers_of_a_grouped_convolution_that_do_not_fit_are_refused(column, value, message, monkeypatch):
    measured(monkeypatch, one_call.KINDS, whole=1.0, layers=2.0)
    x = torch.randn(1, 3, 12, 10)
    engine = resnet_fused.freeze(made("grouped"), x)
    whole, out = engine._calls.one_call, engine(x)
    encoding = whole.encodings[x.shape, False, torch.get_num_threads()]
    steps = encoding.numbers.clone()
    steps[steps[:, 0].tolist().index(one_call.GROUPED), column] = value
    with pytest.raises(RuntimeError, match=message):
        whole.ops.frozen_network(
            x, whole.constants, steps, whole.arenas[0], encoding.activations, torch.empty_like(out)
        )
