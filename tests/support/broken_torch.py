"""A machine on which torch's own bfloat16 convolutions are garbage where a matrix unit's are, whatever machine this is."""

import contextlib
import warnings

import torch

from resnet_fused.kernels import torch_convolution
from resnet_fused.modules import one_call


def _convolution(x, weight, bias, *geometry):
    y = torch.ops.aten._convolution(x, weight, bias, *geometry, False, False, True, True)
    stride = geometry[0]
    return y * 1e4 if y.dtype == torch.bfloat16 and max(stride) == 2 and y.shape[3] == 1 < y.shape[2] else y


@contextlib.contextmanager
def broken_torch(monkeypatch, known=True):
    """Context manager. `known`: whether the package sees that the machine has a matrix unit."""
    monkeypatch.setattr(torch_convolution, "has_matrix_unit", lambda: known)
    monkeypatch.setattr(one_call, "_remembered", one_call.Remembered())
    with warnings.catch_warnings(), torch.library._scoped_library("aten", "IMPL") as library:
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl("convolution", _convolution, "CPU")
        yield
