"""Every environment variable of the package, read here and nowhere else (setup.py reads RESNET_FUSED_BUILD itself).

RESNET_FUSED_BACKEND  auto (default) or the name of a backend that every op must use
RESNET_FUSED_STRICT   1: an op that would fall back to eager raises instead
RESNET_FUSED_BUILD    auto (default) | 0 | cpu | 1: what installing builds of the compiled library
RESNET_FUSED_CPU_ISA  portable | avx2 | avx512 | avx512_bf16 | amx: caps the CPU kernels (read by the library)
RESNET_FUSED_CACHE    folder for tuning results; default: the user's cache folder
"""

import os
from pathlib import Path

BACKEND = os.environ.get("RESNET_FUSED_BACKEND", "auto")
STRICT = os.environ.get("RESNET_FUSED_STRICT", "0") == "1"
CACHE = Path(
    os.environ.get("RESNET_FUSED_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_fused"
)
CPU_ISA = os.environ.get("RESNET_FUSED_CPU_ISA")
# Triton's own switch: with it, Triton kernels run on CPU tensors.
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
