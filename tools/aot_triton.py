"""Compiles every Triton kernel for GPUs that are not there, and reads what came out.

    python tools/aot_triton.py [--arch 80 90 100] [--only NAME]

The real launch functions run on meta tensors with the shapes of ResNets, under a driver that names a target but owns
no device: what is compiled is what a launch on such a GPU would compile, same specialisation, same schedule.py.
Registers and instructions are read from the cubin. Exit status 1 on spills, on shared memory over the limit of the
architecture, or when a convolution that should use tensor cores does not.
"""

import argparse
import concurrent.futures
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if os.environ.pop("TRITON_INTERPRET", "0") != "0":
    sys.exit("aot_triton: unset TRITON_INTERPRET: interpreted kernels cannot be compiled")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aot_fp8
import torch
import triton
from triton.backends.compiler import GPUTarget

from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.kernels.epilogue import NONE, RELU, Epilogue, norm_of
from resnet_fused.kernels.shapes import convolution_of
from resnet_fused.kernels.triton import add_relu, bn_relu, bn_relu_backward, bn_stats, conv_bn_relu

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": fp8.E4M3}
# Bytes of shared memory a block may have (CUDA programming guide, "maximum amount per thread block").
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_CORE = re.compile(r"\b(?:HG|QG|H|Q|UTC\w*)MMA(?:\.\d+(?:x\d+x\d+)?)?")
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def tensor(shape, dtype, channels_last=True):
    t = torch.empty(shape, dtype=dtype, device="meta")
    return t.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else t


def elementwise_cases(dtype):
    x = tensor((256, 64, 56, 56), dtype)
    yield "add_relu", lambda: add_relu.add_relu(x, x, x)
    yield "add_relu", lambda: add_relu.add_relu_backward(x, x, x)
    for shape, channels_last in [((256, 64, 56, 56), True), ((256, 512, 7, 7), True), ((32, 64, 56, 56), False)]:
        yield from bn_cases(tensor(shape, dtype, channels_last))
    yield from bn_cases(tensor((8, 65, 7, 7), dtype))


def bn_cases(x):
    c = x.shape[1]
    f = tensor((c,), torch.float32)
    tracked = torch.empty((), dtype=torch.int64, device="meta")
    label = f"bn_relu {'x'.join(map(str, x.shape))} {'NHWC' if x.stride(1) == 1 else 'NCHW'}"
    yield label, lambda: bn_stats.bn_stats(x, f, f, f, f, None, 0.1, 1e-5)
    yield label, lambda: bn_stats.bn_stats(x, f, f, f, f, tracked, 0.1, 1e-5)
    batch, running = norm_of(f, f, f, f, None), norm_of(f, f, f, f, 1e-5)
    yield label, lambda: bn_relu.bn_relu(x, Epilogue(batch, x), x)
    yield label, lambda: bn_relu.bn_relu(x, Epilogue(running), x)
    yield label, lambda: bn_relu.bn_add_bn_relu(x, batch, x, batch, x)
    reduce, apply = bn_relu_backward.bn_relu_backward_reduce, bn_relu_backward.bn_relu_backward_apply
    yield label, lambda: reduce(x, x, x, batch, f, f, RELU)
    yield label, lambda: reduce(x, x, x, batch, f, f, RELU, x, x)
    yield label, lambda: reduce(x, x, x, batch, f, f, RELU, None, x)
    yield label, lambda: apply(x, x, x, batch, f, f, x, x, RELU)
    yield label, lambda: apply(x, x, None, batch, f, f, x, None, NONE)
    yield label, lambda: apply(x, None, x, running, None, None, x, x, RELU)
    yield label, lambda: apply(x, None, x, running, None, None, x, x, RELU, x)
    yield label, lambda: bn_stats.bn_stats_merge(tensor((8, 2 * c + 1), torch.float32), f, f, f, f, 1.0, 1e-5)


CONVS = {  # name: (n, c, h, k, r, stride, padding, residual)
    "stem": (256, 3, 224, 64, 7, 2, 3, False),
    "layer1": (256, 64, 56, 64, 3, 1, 1, True),
    "layer2 down": (256, 64, 56, 128, 1, 2, 0, False),
    "layer2": (256, 128, 28, 128, 3, 1, 1, True),
    "layer4": (256, 512, 7, 512, 3, 1, 1, True),
    "stem, batch 1": (1, 3, 224, 64, 7, 2, 3, False),
    "layer1, batch 1": (1, 64, 56, 64, 3, 1, 1, True),
    "layer4, batch 1": (1, 512, 7, 512, 3, 1, 1, True),
    "ragged": (8, 65, 14, 10, 3, 1, 1, True),
}


def conv_cases(dtype):
    for name, (n, c, h, k, r, stride, padding, has_residual) in CONVS.items():
        x, weight = tensor((n, c, h, h), dtype), tensor((k, c, r, r), dtype)
        convolution = convolution_of(x, weight, [stride] * 2, [padding] * 2, [1, 1], 1)
        out, f = tensor(convolution.out_shape, dtype), tensor((k,), torch.float32)
        epilogue = Epilogue(norm_of(f, f, f, f, 1e-5), out if has_residual else None)
        arguments = (x, weight, epilogue, out, convolution)
        yield f"conv_bn_relu {name}", lambda arguments=arguments: conv_bn_relu.conv_bn_relu(*arguments)
        arguments = (x, weight, out, f, f, f, f, None, convolution, 0.1, 1e-5)
        yield f"conv_stats {name}", lambda arguments=arguments: conv_bn_relu.conv_stats(*arguments)


class TargetDriver:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # Triton caches compiled kernels per device, so every target is one

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compile_only(arch):
    """Inside it a launch compiles; yields the list of what was compiled."""
    compiled = []
    run = triton.runtime.JITFunction.run

    def warm_up(self, *args, grid, warmup, **kwargs):
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    triton.runtime.driver.set_active(TargetDriver(arch))
    triton.runtime.JITFunction.run = warm_up
    try:
        yield compiled
    finally:
        triton.runtime.JITFunction.run = run


def read_cubin(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([BINARIES / "cuobjdump", flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    return int(re.search(r"REG:(\d+)", usage).group(1)), sass


def describe(kernel, case, arch, dtype):
    registers, sass = read_cubin(kernel.asm["cubin"])
    cores = sorted({match.group(0) for match in TENSOR_CORE.finditer(sass)})
    return {
        "kernel": kernel.metadata.name,
        "case": case,
        "arch": f"sm_{arch}",
        "dtype": dtype,
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
        "registers": registers,
        # Local loads and stores. Stack alone is no spill: 8 bytes of it come with a call to a division routine.
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "shared": kernel.metadata.shared,
        "tensor_core": " ".join(cores),
        "promotions": aot_fp8.promotions(sass),
    }


def faults(row):
    arch = int(row["arch"].removeprefix("sm_"))
    if row["spills"]:
        yield "spills"
    if row["shared"] > SHARED_LIMIT[arch]:
        yield f"shared memory {row['shared']} > {SHARED_LIMIT[arch]}"
    if row["kernel"] == "_conv_kernel" and row["dtype"] != "fp32" and not row["tensor_core"]:
        yield "no tensor-core instruction"
    if row["dtype"] == "e4m3":
        yield from aot_fp8.faults(row)


def compile_case(arch, dtype, index):
    """Rows of case `index` of a dtype; an index, because the cases themselves are closures that do not pickle."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    case, launch = cases(dtype)[index]
    with compile_only(arch) as compiled:
        launch()
    return [describe(kernel, case, arch, dtype) | {"hash": kernel.hash} for kernel in compiled]


def cases(dtype):
    own = DTYPES[dtype]
    if own == fp8.E4M3:
        return list(aot_fp8.cases(tensor))
    elementwise = [] if dtype == "tf32" else elementwise_cases(own)
    return [*elementwise, *conv_cases(own)]


def rows(archs, only=""):
    """One dict per distinct compiled kernel."""
    jobs = [
        (arch, dtype, i)
        for arch in archs
        for dtype in DTYPES
        for i, (case, _) in enumerate(cases(dtype))
        if only in case
        if dtype != "e4m3" or (arch // 10, arch % 10) >= fp8.CAPABILITY
    ]
    found = {}
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        for result in pool.map(compile_case, *zip(*jobs, strict=True)):
            for row in result:
                found.setdefault(row.pop("hash"), row)
    return list(found.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--only", default="", help="compile the cases whose name contains this")
    options = parser.parse_args()
    table = rows(options.arch, options.only)
    widths = {key: max(len(key), *(len(str(row[key])) for row in table)) for key in table[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    failed = 0
    for row in table:
        wrong = list(faults(row))
        failed += bool(wrong)
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()), *wrong)
    print(f"triton {triton.__version__}: {len(table)} kernels compiled, {failed} with faults (ahead of time, no GPU)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
