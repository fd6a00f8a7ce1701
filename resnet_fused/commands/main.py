"""python -m resnet_fused demo | check | verify | bench | explain | summary | tune | train | info; also installed as
resnet-fused.

What a user can get wrong is one line on stderr and exit status 2; 1 means that something is not equal to eager. What one
command alone needs and `import resnet_fused` does not load (0.1 s in all) is imported where that command runs.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

from .. import dispatch
from ..frozen.freeze import freeze
from ..measure import remembered
from ..measure.oracle import with_lively_norms
from ..models import CIFAR_MODELS, MODELS
from ..reports import info
from ..reports.explain import explain
from ..reports.verify.verify import verify
from ..version import __version__
from . import train
from .arguments import (
    DTYPES,
    MAX_THREADS,
    MIN_SIZE,
    Parser,
    UsageError,
    at_least,
    backend_of,
    check_fits,
    device_of,
    input_of,
    model_of,
    shape_of,
)
from .progress import Progress


def parser():
    main = Parser(prog="resnet_fused", description="ResNets on fused kernels, equal to torch eager.")
    main.add_argument("--version", action="version", version=f"resnet_fused {__version__}")
    commands = main.add_subparsers(
        dest="command", required=True, metavar="demo | check | verify | bench | explain | summary | tune | train | info"
    )

    def command(name, function, help):
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(function=function)
        return sub

    def model_options(sub):
        sub.add_argument("--model", choices=MODELS, default="resnet34", help="the network")
        sub.add_argument(
            "--weights",
            help="a .pth or .safetensors state dict, or a weight name of torchvision; default: random weights",
        )
        sub.add_argument("--backend", choices=("auto", *dispatch.BACKENDS), default="auto", help="of every fused op")

    def machine_options(sub):
        sub.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
        sub.add_argument("--threads", type=at_least(1, maximum=MAX_THREADS), help="CPU threads; default: torch's")

    def input_options(sub, batch):
        sub.add_argument("--batch", type=at_least(1), default=batch, help="images")
        sub.add_argument("--size", type=at_least(MIN_SIZE), default=224, help="pixels of a side of an image")
        sub.add_argument("--dtype", choices=DTYPES, default="float32", help="of model and images")

    demo = command("demo", run_demo, "runs a model on a photograph: equality with eager, images/s, a chart")
    demo.add_argument("--image", help="default: the photograph of a cat that comes with the package")
    demo.add_argument("--batch", type=at_least(1), nargs="+", default=[1, 8], help="batch sizes to time")
    demo.add_argument("--seconds", type=at_least(0, float), default=5.0, help="of timing for every batch size")
    demo.add_argument("--output", default="resnet_fused_demo.png", help="the chart, a PNG file")

    check = command(
        "check", run_check, "runs every kernel of this machine on small inputs, and keeps what is wrong off it"
    )

    verify = command("verify", run_verify, "every op and the model against float64, beside eager's own error")
    verify.add_argument("--quick", action="store_true", help="small shapes")
    verify.add_argument("--dtype", choices=DTYPES, nargs="+", help="default: those that the device has kernels for")

    bench = command("bench", run_bench, "times eager, live and frozen models, taking turns")
    bench.add_argument("--seconds", type=at_least(0, float), default=10.0, help="of timing")

    explain = command("explain", run_explain, "which backend every fused op takes, and why")
    explain.add_argument("--train", action="store_true", help="in training mode")
    explain.add_argument("--frozen", action="store_true", help="of the frozen engine")

    tune = command("tune", run_tune, "measures every backend for the shapes of a model and keeps the fastest choices")
    tune.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    tune.add_argument("shape", type=shape_of, metavar="SHAPE", help="of the input, such as 32x3x224x224")
    tune.add_argument("--dtype", choices=DTYPES, default="float32", help="of model and images")
    tune.add_argument("--train", action="store_true", help="a training step instead of an evaluation")
    tune.add_argument("--frozen", action="store_true", help="the engine of freeze() instead of the live model")
    tune.add_argument("--seconds", type=at_least(0, float), default=120.0, help="at most, about")
    tune.add_argument("--again", action="store_true", help="also what is known already")

    train.add_options(
        command("train", run_train, "trains a network; torchrun -m resnet_fused train: on several GPUs"),
        at_least, MODELS, dispatch.BACKENDS, MAX_THREADS,
    )  # fmt: skip

    summary = command("summary", run_summary, "the paper's table: layers, sizes, parameters, FLOPs, fused kernels")
    summary.add_argument("model", choices=MODELS | CIFAR_MODELS, nargs="?", default="resnet34", help="the network")
    summary.add_argument("--size", type=at_least(MIN_SIZE), help="default: 224, and 32 for the CIFAR networks")

    for sub in (demo, bench, explain):
        model_options(sub)
    for sub in (demo, check, verify, bench, explain, summary, tune):
        machine_options(sub)
    input_options(bench, batch=8)
    input_options(explain, batch=1)
    command("info", run_info, "versions, what was built, backends, environment variables")
    return main


def run_demo(args):
    for package, module in (("pillow", "PIL"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"the demo needs {package}: pip install 'resnet_fused[demo]'")
    from . import demo, photo

    chart = Path(args.output)
    if chart.suffix.lower() != ".png":
        raise UsageError(f"--output must end in .png: {chart}")
    if not chart.parent.is_dir() or chart.is_dir():
        raise UsageError(f"--output: no such folder, or a folder itself: {chart}")
    try:
        image = photo.load(args.image or photo.SAMPLE)
    except (OSError, ValueError) as e:
        raise UsageError(f"--image: {e}") from e
    device = device_of(args)
    check_fits(max(args.batch), photo.CROP, photo.CROP, device)
    with backend_of(args), Progress() as progress:
        model = model_of(args, device)
        equal = demo.run(args.model, model, image, args.weights, args.batch, args.seconds, chart, progress, device)
    return 0 if equal else 1


def run_check(args):
    from . import check

    with Progress() as progress:
        reports = [check.check(device, progress.step) for device in check.devices(device_of(args))]
    print("\n\n".join(map(str, reports)))
    return 0 if all(report.passed for report in reports) else 1


def run_verify(args):
    dtypes = [DTYPES[d] for d in args.dtype] if args.dtype else None
    device = device_of(args)
    with Progress() as progress:
        report = verify(device, dtypes, args.quick, progress.step)
    print(report)
    return 0 if report.passed else 1


def run_bench(args):
    from . import bench

    device = device_of(args)
    with backend_of(args), Progress() as progress:
        model, x = model_of(args, device, DTYPES[args.dtype]), input_of(args, device)
        rows, _ = bench.speed(model, x, bench.freezable(device, [x.dtype]), args.seconds, progress.step)
    print(f"{args.model} at {args.size}x{args.size} on {info.environment()['gpu' if device == 'cuda' else 'cpu']}")
    print(bench.speed_text(rows))
    return 0


def run_explain(args):
    if args.train and args.frozen:
        raise UsageError("--train and --frozen exclude each other")
    device = device_of(args)
    if args.train and args.batch == 1 and args.size <= MIN_SIZE:
        raise UsageError("--train needs more than one value per channel: a larger --batch or --size")
    with backend_of(args):
        model, x = model_of(args, device, DTYPES[args.dtype]).train(args.train), input_of(args, device)
        if args.frozen:
            try:
                model = freeze(model, x)
            except (NotImplementedError, ValueError) as e:
                raise UsageError(str(e)) from e
        print(explain(model, x))
    return 0


def run_tune(args):
    from .tune import tune

    if args.train and args.frozen:
        raise UsageError("--train and --frozen exclude each other")
    if args.train and args.shape[0] == 1 and max(args.shape[2:]) <= MIN_SIZE:
        raise UsageError("--train needs more than one value per channel: a larger batch or image")
    device, dtype = device_of(args), DTYPES[args.dtype]
    check_fits(args.shape[0], *args.shape[2:], device)
    model = with_lively_norms(MODELS[args.model]()).eval()
    model = model.to(device, memory_format=torch.channels_last)
    with Progress() as progress:
        if args.frozen:
            report = _tuned_engine(model, args, dtype, progress.step)
        else:
            rows, left_out = tune.tune(
                model, args.shape, dtype, train=args.train, seconds=args.seconds, again=args.again, step=progress.step
            )
            report = tune.text(rows, left_out)
    print(report)
    return 0


def _tuned_engine(model, args, dtype, step):
    step("freezing")
    x = torch.randn(args.shape, device=model.conv1.weight.device)
    try:
        with remembered.ignored(args.again):
            return explain(freeze(model, x, dtype=dtype), x)
    except (NotImplementedError, ValueError) as e:
        raise UsageError(str(e)) from e


def run_train(args):
    from .train.run import run

    try:
        run(args)
    except train.CannotTrain as e:  # from a process that loads images it comes with a traceback before its message
        raise UsageError(str(e).strip().splitlines()[-1].rpartition("CannotTrain: ")[2]) from e
    return 0


def run_summary(args):
    from ..reports.summary import summarize

    device, small = device_of(args), args.model in CIFAR_MODELS
    size = args.size or (32 if small else 224)
    check_fits(1, size, size, device)
    model = (MODELS | CIFAR_MODELS)[args.model]().eval().to(device)
    print(f"{args.model} at {size}x{size}, evaluation on {device}")
    print(summarize(model, torch.randn(1, 3, size, size, device=device)))
    return 0


def run_info(args):
    print(info.text())
    return 0


def main(argv=None):
    try:
        args = parser().parse_args(argv)
        status = args.function(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader is gone, as after `| head`; Python would complain again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as e:
        print(f"resnet_fused: error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
