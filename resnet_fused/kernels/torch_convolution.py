"""torch's own convolution, wherever an op runs it. Where it is known to be wrong, it runs in float32.

On a CPU with a matrix unit (AMX) oneDNN computes garbage, errors of 1 to 7e18 times the result, for a bfloat16
convolution with stride 2 whose output is one column wide and more than one row high (torch 2.13, 2-core Intel Xeon,
2026-11-29: 3x3 on maps of 4x1 to 8x2, 7x7 on 200x1). It is right in float32, for square maps, and with
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16. Such maps are small, so float32 costs little. Whether the gradients are wrong too was
not tried; they run in float32 as well.

With several threads oneDNN's bfloat16 gradient of the weight writes past its memory for a channels_last 1x1 convolution with
a stride and fewer than 16 input channels: the process ends then or later (torch 2.11, 2.13 and 2.14, AMD EPYC Zen 4,
2026-12-01: 8 and 12 channels crashed on maps of 14x14, 16 and more never did, nor did 3x3 or stride 1).
"""

import functools

import torch
import torch.nn.functional as F

from .shapes import out_size


@functools.cache
def has_matrix_unit():
    return torch.cpu._is_amx_tile_supported()


def why_wrong(device_type, dtype, x, weight, stride, padding, dilation):
    """Why torch's convolution of these shapes [N, C, H, W] and [K, C, R, S] is wrong on this machine, or None."""
    if dtype != torch.bfloat16 or device_type != "cpu" or not has_matrix_unit():
        return None
    if not len(x) == len(weight) == 4 or min(stride) < 1 or max(stride) == 1:
        return None
    rows, columns = map(out_size, x[2:], weight[2:], stride, padding, dilation)
    if columns != 1 or rows == 1:
        return None
    return f"torch's own bfloat16 convolution is wrong here (stride {max(stride)}, an output of {rows} x 1, AMX)"


def why_wrong_of(convolution, device_type):
    """`why_wrong` of a shapes.Convolution."""
    x, weight, dtype, *geometry, _ = convolution
    return why_wrong(device_type, dtype, x, weight, *geometry)


def _wrong(x, weight, stride, padding, dilation):
    return why_wrong(x.device.type, x.dtype, x.shape, weight.shape, stride, padding, dilation) is not None


def _overruns(device_type, dtype, weight, stride):
    """Whether torch's gradient of a weight of shape [K, C, R, S] may write past its memory."""
    strided = tuple(weight[2:]) == (1, 1) and max(stride) > 1
    return strided and weight[1] < 16 and dtype == torch.bfloat16 and device_type == "cpu"


def trains(convolution, device_type):
    """Whether torch's own convolution may run a shapes.Convolution in training: it is right, and so are its gradients."""
    _, weight, dtype, stride, *_ = convolution
    wrong = why_wrong_of(convolution, device_type) is not None
    return not wrong and not _overruns(device_type, dtype, weight, stride)


def convolve(x, weight, stride, padding, dilation, groups, bias=None):
    """F.conv2d of one dtype, rounded once where torch's own is wrong."""
    if _wrong(x, weight, stride, padding, dilation):
        wide = [None if t is None else t.float() for t in (x, weight, bias)]
        return F.conv2d(*wide, stride, padding, dilation, groups).to(x.dtype)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def convolve_in_autocast(x, weight, stride, padding, dilation, groups):
    """`convolve` for autograd, where autocast may be on, as F.conv2d casts its arguments."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if why_wrong(device, dtype, x.shape, weight.shape, stride, padding, dilation) is None:
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)
    with torch.autocast(device, enabled=False):
        return convolve(x.to(dtype), weight.to(dtype), stride, padding, dilation, groups)


def gradients(grad, x, weight, stride, padding, dilation, groups, wanted):
    """(grad_x, grad_weight) of `convolve`; None where `wanted`, a pair, says so."""
    wide = _wrong(x, weight, stride, padding, dilation) or (
        wanted[1] and _overruns(x.device.type, x.dtype, weight.shape, stride)
    )
    tensors = [t.float() if wide else t for t in (grad, x, weight)]
    found = torch.ops.aten.convolution_backward(
        *tensors, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )
    return [t.to(x.dtype) if wide and t is not None else t for t in found[:2]]
