"""Whether a float32 convolution may round its factors to TF32."""

import torch


def tf32_allowed():
    """Whether torch would let a float32 convolution use TF32. torch's flags can change between two calls."""
    precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    if precision in ("tf32", "ieee"):
        return precision == "tf32"
    return torch.backends.cudnn.allow_tf32
