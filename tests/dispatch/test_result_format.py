"""Maps of one pixel and of one channel, which are contiguous and channels_last at once: the result decides what runs."""

import pytest
import torch

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.kernels import layout
from resnet_fused.measure.accuracy import budget_used, exact
from resnet_fused.ops import conv_bn_relu, conv_bn_relu_pair, conv_bn_relu_pool
from resnet_fused.ops.conv_bn_relu import reference

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
# (shape of x, channels out, size of the filter, padding)
BOTH = {
    "one-pixel": ((3, 16, 1, 1), 24, 3, 1),
    "one-pixel-becomes-nine": ((3, 16, 1, 1), 24, 1, 1),
    "one-channel": ((2, 1, 8, 8), 16, 3, 1),
    "one-channel-out": ((2, 16, 8, 8), 1, 3, 1),
    "one-value": ((4, 1, 1, 1), 1, 1, 0),
}
each_shape = pytest.mark.parametrize("case", BOTH)


def tensors(case, device, weights=CONTIGUOUS):
    shape, k, size, padding = BOTH[case]
    x, weight = torch.randn(shape, device=device), torch.randn(k, shape[1], size, size, device=device)
    bn_weight, bn_bias, mean = torch.randn(3, k, device=device)
    return (x, weight.to(memory_format=weights), bn_weight, bn_bias, mean, torch.rand(k, device=device) + 0.5), padding


@pytest.mark.parametrize("weights", [CONTIGUOUS, CHANNELS_LAST], ids=["kcrs", "krsc"])
@pytest.mark.parametrize("gray", [False, True], ids=["plain", "strides-of-channels-last"])
@each_shape
def test_a_tensor_with_both_formats(case, gray, weights, backend, device):
    arguments, padding = tensors(case, device, weights)
    if gray:
        arguments = layout.with_strides_of_channels_last(arguments[0]), *arguments[1:]
    out = conv_bn_relu(*arguments, padding=padding)
    eager = reference(*arguments, padding=padding)
    oracle = reference(*map(exact, arguments), padding=padding)
    assert budget_used(out, eager, oracle, channel_dim=None) <= 1
    with dispatch.record() as rows:
        again = conv_bn_relu(*arguments, padding=padding)
    # What ran is what the dispatcher says: a kernel writes channels_last.
    assert torch.equal(out, again)
    if rows[0][2].backend == "emulator":
        assert layout.is_channels_last(out)
    elif backend == "emulator" and not layout.is_channels_last(out):
        assert rows[0][2] == dispatch.Choice("torch", "contiguous NCHW: torch's convolution, then one fused pass")


@each_shape
def test_a_pair_with_both_formats(case, backend, device):
    (x, weight, *norm), padding = tensors(case, device)
    weight2 = torch.randn(8, x.shape[1], 1, 1, device=device)
    norm2 = [*torch.randn(3, 8, device=device), torch.rand(8, device=device) + 0.5]
    ways = {
        "stride": (1, 1),
        "padding": (padding,) * 2,
        "dilation": (1, 1),
        "eps": 1e-5,
        "stride2": (1, 1),
        "eps2": 1e-5,
    }
    with torch.no_grad():
        found = conv_bn_relu_pair(x, weight, norm, weight2, norm2, **ways)
    for out, (w, n, relu, p) in zip(found, ((weight, norm, True, padding), (weight2, norm2, False, 0)), strict=True):
        arguments = x, w, *n
        eager = reference(*arguments, padding=p, relu=relu)
        oracle = reference(*map(exact, arguments), padding=p, relu=relu)
        assert budget_used(out, eager, oracle, channel_dim=None) <= 1


def test_a_stem_of_one_channel(backend, device):
    x, weight = torch.randn(2, 1, 32, 32, device=device), torch.randn(8, 1, 7, 7, device=device)
    norm = [*torch.randn(3, 8, device=device), torch.rand(8, device=device) + 0.5]
    with torch.no_grad():
        out = conv_bn_relu_pool(x, weight, *norm, stride=(2, 2), padding=(3, 3))
    pool = torch.nn.functional.max_pool2d
    eager = pool(reference(x, weight, *norm, stride=2, padding=3), 3, 2, 1)
    oracle = pool(reference(*map(exact, (x, weight, *norm)), stride=2, padding=3), 3, 2, 1)
    assert budget_used(out, eager, oracle, channel_dim=None) <= 1


def test_the_strides_of_channels_last():
    gray, one = torch.empty(2, 1, 4, 5), torch.empty(2, 3, 1, 1)
    for t in (gray, one, torch.empty(2, 3, 4, 5)):
        last = layout.with_strides_of_channels_last(t)
        assert layout.has_strides_of_channels_last(last) and not layout.has_strides_of_channels_last(t)
        assert last.stride() == torch.empty_like(t, memory_format=CHANNELS_LAST).stride()
        assert (last.data_ptr() == t.data_ptr()) is (min(t.shape[1], t.shape[2]) == 1)
    weight = torch.empty(8, 1, 3, 3)
    for t in (gray, layout.with_strides_of_channels_last(gray)):
        torchs = torch.nn.functional.conv2d(t, weight)
        assert layout.result_format(t, weight) is layout.format_of(torchs)


def test_a_measurement_belongs_to_the_layout_of_the_weight():
    """A kernel that has to copy its weight at every call is not the one that was measured without."""
    weight, keys = torch.randn(16, 8, 3, 3), []
    x, vector = torch.randn(1, 8, 8, 8).to(memory_format=CHANNELS_LAST), torch.ones(16)
    for memory_format in (CONTIGUOUS, CHANNELS_LAST):
        with dispatch.record_keys() as found, resnet_fused.strict(False):
            conv_bn_relu(x, weight.to(memory_format=memory_format), vector, vector, vector, vector)
        keys.append(found[0])
    assert keys[0] != keys[1] and "weight copied" in keys[0] and "weight" not in keys[1]
    with dispatch.record_keys() as found:  # a 1x1 weight has both formats
        conv_bn_relu(x, torch.randn(16, 8, 1, 1), vector, vector, vector, vector)
    assert "weight" not in found[0]
