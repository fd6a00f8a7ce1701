"""python -m benchmarks.gpu.warm: compiles Triton's kernels before anything waits for one, on all cores.

What is compiled: every launch configuration that `tune` may measure for the convolutions of ResNet-34. It lies in Triton's
cache afterwards (TRITON_CACHE_DIR), where every process finds it. Nothing runs: with `--arch 90` no GPU is needed.
"""

import concurrent.futures
import os
import sys

import torch

from resnet_fused.kernels import triton as backend
from resnet_fused.kernels.epilogue import Epilogue, norm_of
from resnet_fused.kernels.shapes import convolution_of

from ..protocol import cases, options
from . import parts

if str(parts.ROOT / "tools") not in sys.path:
    sys.path.append(str(parts.ROOT / "tools"))


def jobs(model, batch, size, dtype):
    """(convolution, whether something is added, launch configuration or None) of everything to compile. Configurations that
    differ in a number of splits above 1 have one kernel."""
    found = {}
    for case in cases.collect(model, batch, size, dtype, ("conv_bn_relu",), ("forward",)):
        x, weight = (torch.empty(case.call[name].shape, dtype=dtype, device="meta") for name in ("x", "weight"))
        where = (case.call[name] for name in ("stride", "padding", "dilation"))
        convolution = convolution_of(x, weight, *where, case.call["groups"])
        for config in (None, *backend.configurations("conv_bn_relu", convolution)):
            added = case.call["residual"] is not None
            kernel = config and config | {"splits": config["splits"] > 1}
            found[repr((convolution, added, kernel))] = convolution, added, config
    return list(found.values())


def compile_one(arch, job):
    """The number of kernels that a launch needs. It happens on tensors without memory, for a GPU that need not be there."""
    import aot_triton

    from resnet_fused.kernels.triton.conv_bn_relu import conv_bn_relu

    convolution, added, config = job
    x, weight, out = (
        aot_triton.tensor(shape, convolution.dtype)
        for shape in (convolution.x, convolution.weight, convolution.out_shape)
    )
    f = torch.empty(weight.shape[0], device="meta")
    with aot_triton.compile_only(arch) as compiled:
        conv_bn_relu(x, weight, Epilogue(norm_of(f, f, f, f, 1e-5), out if added else None), out, convolution, config)
    return len(compiled)


def main(argv=None):
    made = options.parser("gpu.warm", __doc__.splitlines()[0].partition(": ")[2])
    made.add_argument("--arch", type=options.at_least(80), help="such as 90; default: that of the GPU")
    made.set_defaults(dtype="bfloat16")
    args = options.settle(made.parse_args(argv), (256,), (256,))
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise options.UsageError("TRITON_INTERPRET is set: interpreted kernels are not compiled")
    if args.arch is None and args.device != "cuda":
        raise options.UsageError("argument --arch: there is no GPU to ask for it")
    arch = args.arch or int("{}{}".format(*torch.cuda.get_device_capability()))
    model, done = options.model_of(args).to(memory_format=torch.channels_last), 0
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for batch in args.batch:
            found = jobs(model, batch, args.size, args.dtype)
            done += sum(pool.map(compile_one, [arch] * len(found), found))
    print(f"Triton's kernels of {done} launches are compiled for sm_{arch}")
    return 0


if __name__ == "__main__":
    sys.exit(options.run(main, None))
