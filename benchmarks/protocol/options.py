"""What the command lines of the benchmarks share."""

import sys
import time

import torch

import resnet_fused
from resnet_fused.commands.arguments import DTYPES, Parser, UsageError, at_least, device_of
from resnet_fused.models import CIFAR_MODELS

from . import zoo


def parser(program, description):
    made = Parser(prog=f"python -m benchmarks.{program}", description=description)
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    made.add_argument("--threads", type=at_least(1), help="CPU threads")
    made.add_argument(
        "--model", type=zoo.network_name, default="resnet34",
        help="of this package, or another package's network, converted: timm/resnet50d, torchvision/vgg16_bn",
    )  # fmt: skip
    made.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    made.add_argument("--batch", type=at_least(1), nargs="+", help="batch sizes")
    made.add_argument("--size", type=at_least(32), help="pixels of a side of the image; default: 224, 32 for CIFAR's")
    made.add_argument("--seconds", type=at_least(0, float), help="of timing for every group of candidates")
    made.add_argument("--budget", type=at_least(0, float), help="seconds after which nothing new is started")
    made.add_argument("--output", help="folder of the results; default: benchmarks/results")
    return made


def model_of(args):
    """The network that `--model` names, converted."""
    return resnet_fused.convert(zoo.build(args.model))


def deadline(args):
    """A function that tells whether the budget of `args` is spent; it counts from here."""
    start = time.monotonic()
    return lambda: args.budget is not None and time.monotonic() - start > args.budget


def settle(args, gpu_batches, cpu_batches):
    """Fills in what depends on the device."""
    args.device = device_of(args)
    gpu = args.device == "cuda"
    args.dtype = DTYPES[args.dtype or ("bfloat16" if gpu else "float32")]
    args.size = args.size or (32 if args.model in CIFAR_MODELS else 224)
    args.batch = args.batch or list(gpu_batches if gpu else cpu_batches)
    if gpu:
        torch.backends.cudnn.benchmark = True  # the peers at their best: cuDNN chooses by timing
    return args


def run(main, argv):
    """Exit status of `main(argv)`; a wrong argument is one line and status 2."""
    try:
        return main(argv)
    except UsageError as error:
        print(f"benchmarks: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
