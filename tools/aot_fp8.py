"""The e4m3 convolutions for tools/aot_triton.py: what is compiled, and what must be in it."""

import re

import torch

from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.kernels.epilogue import RELU
from resnet_fused.kernels.shapes import convolution_of, out_size
from resnet_fused.kernels.triton import conv_fp8

SHAPES = {  # name: (n, c, h, k, r, stride, padding, what is added, what is written)
    "layer1": (256, 64, 56, 64, 3, 1, 1, "e4m3", "e4m3"),
    "layer1 first": (256, 64, 56, 64, 3, 1, 1, "bf16", "e4m3"),
    "layer2 down": (256, 64, 56, 128, 1, 2, 0, None, "e4m3"),
    "layer2": (256, 128, 28, 128, 3, 1, 1, "e4m3", "e4m3"),
    "layer4 last": (256, 512, 7, 512, 3, 1, 1, "e4m3", "bf16"),
    "layer4, batch 1": (1, 512, 7, 512, 3, 1, 1, "e4m3", "e4m3"),
    "small": (128, 16, 32, 16, 3, 1, 1, "e4m3", "e4m3"),
    "ragged": (8, 48, 14, 40, 3, 1, 1, None, "e4m3"),
    "small, batch 1": (1, 16, 32, 16, 3, 1, 1, "e4m3", "e4m3"),
}
DTYPES = {"e4m3": fp8.E4M3, "bf16": torch.bfloat16}


def cases(tensor):
    """(label, launch) of each; `tensor(shape, dtype)` makes a tensor without memory."""
    for name, (n, c, h, k, r, stride, padding, added, written) in SHAPES.items():
        x, weight, f = tensor((n, c, h, h), fp8.E4M3), tensor((k, c, r, r), fp8.E4M3), tensor((k,), torch.float32)
        p = out_size(h, r, stride, padding)
        out = tensor((n, k, p, p), DTYPES[written])
        residual = None if added is None else tensor(out.shape, DTYPES[added])
        for tile in (None, *fp8.alternatives(n, p, p, weight.shape)):
            config = tile and dict(zip(fp8.TILE, tile, strict=True))
            convolution = convolution_of(x, weight, [stride] * 2, [padding] * 2, [1, 1], 1)
            arguments = x, weight, f, f, residual, 0.5, RELU, out, convolution, config
            yield f"conv_fp8 {name}", lambda arguments=arguments: conv_fp8.conv_fp8(*arguments)
    x = tensor((256, 64, 56, 56), torch.bfloat16)
    yield "quantise_fp8", lambda: conv_fp8.quantise_fp8(x, 0.5, tensor(x.shape, fp8.E4M3))


def promotions(sass):
    """(matrix products, additions in float32): the epilogue has none but fused ones, so these promote sums."""
    return len(re.findall(r"\bQG?MMA\b", sass)), len(re.findall(r"\bFADD\b", sass))


def faults(row):
    products, additions = row["promotions"]
    if row["kernel"] == "_conv_kernel":
        wanted = "QGMMA" if row["arch"] == "sm_90" else "QMMA" if row["arch"] == "sm_89" else "MMA"
        if wanted not in row["tensor_core"]:
            yield f"no {wanted}"
        # A product of Hopper's leaves its columns / 2 sums to a thread, of Ada's 4, and of these at most 4 are one sum.
        least = max((int(n) // 2 for n in re.findall(r"QGMMA\.64x(\d+)x32", row["tensor_core"])), default=products)
        if additions < least:
            yield f"{additions} additions in float32, fewer than {least}: sums are not promoted"
