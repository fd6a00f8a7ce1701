"""A machine on which torch's own bfloat16 convolutions are garbage where a matrix unit's are, whatever machine this is."""

import contextlib
import warnings

import torch

from resnet_fused import dispatch
from resnet_fused.kernels import torch_convolution
from resnet_fused.modules import one_call


@contextlib.contextmanager
def convolutions(spoil):
    """Context manager: torch's convolutions on CPUs, also those inside of ops, give spoil(the right result, stride)."""

    def convolution(x, weight, bias, stride, *others):
        y = torch.ops.aten._convolution(x, weight, bias, stride, *others, False, False, True, True)
        return spoil(y, stride)

    with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl("convolution", convolution, "CPU")
        yield


def _as_with_a_matrix_unit(y, stride):
    return y * 1e4 if y.dtype == torch.bfloat16 and max(stride) == 2 and y.shape[3] == 1 < y.shape[2] else y


@contextlib.contextmanager
def broken_torch(monkeypatch, known=True):
    """Context manager. `known`: whether the package sees that the machine has a matrix unit."""
    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: known)
    monkeypatch.setattr(one_call, "_remembered", dispatch.Remembered())
    with convolutions(_as_with_a_matrix_unit):
        yield
