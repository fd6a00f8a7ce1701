"""The run: settings -> data, model, optimizer -> epochs -> checkpoints and metrics. Under torchrun: one process per device."""

import contextlib
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ... import dispatch
from ...kernels import layout
from ...reports import table
from ..progress import Progress
from . import CannotTrain, checkpoint, data, report
from .build import build
from .group import process_group
from .loop import Loop, evaluate

# The options that must be the same when a run is resumed; the others (workers, device, threads) may change.
FIXED = ("arch", "stem", "epochs", "batch", "size", "limit", "lr", "momentum", "weight_decay", "label_smoothing", "ema",
         "amp", "contiguous", "sync_bn", "seed")  # fmt: skip


def _whole_number(name, default):
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise CannotTrain(f"{name} should be a whole number, as torchrun sets it, not {text!r}")
    return int(text)


@contextlib.contextmanager
def processes(args):
    """(rank, number of processes, device); initialises torch.distributed under torchrun."""
    world, local = (_whole_number(name, default) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CannotTrain("--device cuda: torch sees no CUDA device")
    kind = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise CannotTrain(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
    if args.sync_bn and world == 1:
        raise CannotTrain("--sync-bn needs several processes: torchrun --nproc-per-node 2 -m resnet_fused train ...")
    if args.sync_bn and kind == "cpu":
        raise CannotTrain("--sync-bn: DDP takes nn.SyncBatchNorm on GPUs only")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield 0, 1, device
        return
    with process_group("nccl" if kind == "cuda" else "gloo"):
        yield dist.get_rank(), world, device


def run(args):
    """Trains as `args` (see `add_options`) says; returns the rows of metrics.csv. Raises CannotTrain."""
    data.check_installed("matplotlib", "matplotlib")
    output = Path(args.output)
    with processes(args) as (rank, world, device):
        sets = data.load(args.data, args.size, args.seed)
        if rank == 0:
            _say_what_is_left_out(sets)
        settings = {**{name: getattr(args, name) for name in FIXED}, "processes": world}
        state = _earlier(args, output, settings, sets[2], rank)
        if rank == 0:
            _announce(args, *sets, world, device)
        with _backend(args), Progress() if rank == 0 else contextlib.nullcontext() as progress:
            return _train(args, settings, output, *sets, state, rank, world, device, progress)


def _announce(args, train, val, classes, world, device):
    """What the run will do, and for how long it will not return."""
    count = min(len(train), args.limit or len(train))
    processes = f"{world} processes" if world > 1 else "one process"
    lines = (
        f"training {args.arch} on {args.data}: {count} images of {len(classes)} classes, {args.epochs} epochs of"
        f" {count // (args.batch * world)} steps, batch {args.batch}, on {device.type} in {processes};",
        f"results go to {args.output} after every epoch (--help lists the options)",
    )
    print(*map(table.fit, lines), sep="\n", flush=True)


def _backend(args):
    if args.backend == dispatch.EAGER.name:
        return contextlib.nullcontext()  # `build` makes a network that never calls an op
    try:
        return dispatch.backend(args.backend)
    except RuntimeError as error:
        raise CannotTrain(f"--backend: {error}") from None


def _earlier(args, output, settings, classes, rank):
    """The checkpoint to resume, or None. Raises CannotTrain where the folder holds a run and --resume is not given."""
    path = output / "checkpoint.pt"
    if args.resume:
        state = checkpoint.load(path)
        checkpoint.check(state, settings, classes)
        return state
    if path.exists():
        raise CannotTrain(f"--output: {path} exists: --resume goes on with it, another --output starts afresh")
    if rank == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotTrain(f"--output: {error}") from error
    return None


def _train(args, settings, output, train, val, classes, state, rank, world, device, progress):
    if args.limit:
        train, val = data.first(train, args.limit), data.first(val, args.limit)
    if len(train) < args.batch * world:
        raise CannotTrain(f"--batch: {args.batch} images on {world} processes, but there are {len(train)}")
    model = build(args, len(classes), train[0][0].shape[-1]).to(device)
    if not args.contiguous:
        model = model.to(memory_format=layout.CHANNELS_LAST)
    if args.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema), use_buffers=True) if args.ema else None
    decay, no_decay = [], []
    for p in model.parameters():
        (decay if p.dim() > 1 else no_decay).append(p)  # biases and batch norm are not pulled to zero
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum, nesterov=args.momentum > 0)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    loop = Loop(args, train, model, ema, optimizer, scaler, rank, world, device)
    if state is not None:
        loop.load(state)
    wrapped = model
    if world > 1:
        wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def save():
        if rank == 0:
            checkpoint.save(output / "checkpoint.pt", {"settings": settings, "classes": list(classes), **loop.state()})

    while loop.epoch < args.epochs:
        start, first = time.perf_counter(), loop.step
        loop.run_epoch(wrapped, save, progress)
        seconds = time.perf_counter() - start
        row = loop.row(seconds, loop.steps - first)
        row["val_loss"], row["val_accuracy"] = evaluate(args, model, val, rank, world, device)
        if ema is not None:
            row["ema_accuracy"] = evaluate(args, ema.module, val, rank, world, device)[1]
        loop.end_epoch(row)
        save()
        if rank == 0:
            report.write_csv(output / "metrics.csv", loop.rows)
            report.write_curve(
                output / "curve.png", loop.rows, f"{args.arch} on {Path(args.data).name}, {args.backend}"
            )
            _say(progress, row, args.epochs)
    return loop.rows


def _say_what_is_left_out(sets):
    for part, images in zip(("train", "val"), sets[:2], strict=True):
        if left_out := getattr(images, "left_out", None):
            endings = ", ".join(data.SUFFIXES)
            print(f"left out of {part}: {data.counted(left_out)} (images end in {endings})", file=sys.stderr)


def _say(progress, row, epochs):
    progress.clear()
    print(
        f"epoch {row['epoch']}/{epochs}: training loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f},"
        f" validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}, {row['images_per_s']:.0f} images/s",
        flush=True,
    )
