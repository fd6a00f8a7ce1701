"""Every private op with an `int activation` refuses one that its kernel does not have, in one line, and writes nothing."""

import pytest
import torch
from emulator import build

from resnet_fused.kernels import library

LAST = torch.channels_last
EPS = 1e-5
ONE = [1, 1]
UNKNOWN = 2
MORE = 7  # of a kernel with all functions of csrc/cpu/base/pointwise.h


def maps(channels, dtype, size=6):
    """x and out."""
    return [torch.full((2, channels, size, size), float("nan"), dtype=dtype).to(memory_format=LAST) for _ in range(2)]


def parameters(channels):
    return [torch.ones(channels) for _ in range(4)]


def norm_passes(ops):
    """(op, its arguments, what it writes): in the library on a CPU, and in `cuda::` on the emulator."""
    x, out = maps(8, torch.float32)
    mean, var_or_invstd, weight, bias = parameters(8)
    sums = torch.full((8,), float("nan"))
    return [
        (ops.bn_relu, (x, mean, var_or_invstd, weight, bias, None, out, EPS, UNKNOWN), out),
        (ops.bn_relu_backward_reduce, (x, None, x, None, None, sums, None, None, UNKNOWN), sums),
        (ops.bn_relu_backward_apply, (x, None, x, None, var_or_invstd, *[None] * 3, out, None, EPS, UNKNOWN), out),
    ]


def cpu_convolutions(ops):
    weight, shift = torch.randn(8, 8, 3, 3), torch.zeros(8)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        x, out = maps(8, dtype)
        direct = (shift, None, out, 3, 3, 1, 1, 1, MORE)
        points = ops.winograd_pack(weight, None, 4, False, dtype == torch.bfloat16)
        found += [
            (ops.direct_conv, (x, ops.direct_pack(weight.to(dtype)), *direct), out),
            (ops.amx_conv, (x, ops.amx_pack(weight.to(dtype)), *direct), out),
            (ops.winograd_conv, (x, points, shift, None, out, 4, 1, UNKNOWN, None), out),
        ]
    x, out = maps(8, torch.float32)
    return [*found, (ops.winograd_conv_bn_relu, (x, weight, *parameters(8), None, out, 1, EPS, UNKNOWN), out)]


def cuda_convolutions(ops):
    found = []
    table = torch.zeros(1 << 16, dtype=torch.int32)
    for op, channels, more in ((ops.conv_bn_relu, 8, ()), (ops.conv_strip, 64, ()), (ops.conv_plane, 128, (table,))):
        x, out = maps(channels, torch.float16)
        weight = torch.randn(channels, channels, 3, 3).half().to(memory_format=LAST)
        arguments = (x, weight, *parameters(channels), None, out, *more, ONE, ONE, ONE, 1, EPS, UNKNOWN)
        found.append((op, arguments, out))
    return found


def check(calls):
    for op, arguments, out in calls:
        with pytest.raises(
            RuntimeError,
            match=r": activation is (2, but the kernel has 0 \(none\), 1 \(relu\)|7, but the kernel has 0 to 6)$",
        ):
            op(*arguments)
        assert out.isnan().all()


@pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
@pytest.mark.parametrize("calls", [norm_passes, cpu_convolutions])
def test_on_a_cpu(calls):
    check(calls(library.namespace()))


@pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))
@pytest.mark.parametrize("calls", [norm_passes, cuda_convolutions])
def test_on_the_emulator(calls):
    check(calls(build.load()))
