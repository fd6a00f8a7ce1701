"""Whether a float32 convolution may round its factors to TF32."""

import torch


def tf32_allowed():
    """Whether torch would let a float32 convolution use TF32. torch's flags can change between two calls."""
    # `torch.backends.cudnn.allow_tf32` raises where convolutions and recurrent networks have different settings.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"
