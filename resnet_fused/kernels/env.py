"""Every environment variable of the package. No other module reads one; setup.py reads RESNET_FUSED_BUILD itself."""

import os
from pathlib import Path

# Of the CPU kernels (csrc/cpu/base/isa.h); each has what the ones before it have.
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")
# {name: (meaning, default)}
VARIABLES = {
    "RESNET_FUSED_BACKEND": ("`auto`, or the name of a backend that every op must use", "auto"),
    "RESNET_FUSED_STRICT": ("`1`: an op that would fall back to eager raises instead", "0"),
    "RESNET_FUSED_BUILD": ("`auto`, `all`, `cpu`, `0` or `1`: what installing builds of the compiled library", "auto"),
    "RESNET_FUSED_CPU_ISA": (
        "one of INSTRUCTION_SETS: the most that the CPU kernels may use (read by the library)",
        "what the CPU has",
    ),
    "RESNET_FUSED_CACHE": ("folder for tuning results", "the user's cache folder"),
    "RESNET_FUSED_TRUST": (
        "`check`: a CUDA device uses a kernel once it was found right there; `always`: unchecked; `never`: not at all",
        "check",
    ),
    "TRITON_INTERPRET": ("Triton's own switch: `1` runs its kernels on CPU tensors, slowly", "0"),
}


def _value(name):
    return os.environ.get(name, VARIABLES[name][1])


BACKEND = _value("RESNET_FUSED_BACKEND")
STRICT = _value("RESNET_FUSED_STRICT") == "1"
CACHE = Path(
    os.environ.get("RESNET_FUSED_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_fused"
)
TRUST = _value("RESNET_FUSED_TRUST")
CPU_ISA = os.environ.get("RESNET_FUSED_CPU_ISA")
TRITON_INTERPRET = _value("TRITON_INTERPRET") == "1"
# Triton's own: the C compiler and the assembler that it uses.
CC, PTXAS = os.environ.get("CC"), os.environ.get("TRITON_PTXAS_PATH")
