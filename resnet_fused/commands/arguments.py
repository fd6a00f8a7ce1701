"""What the command lines of the package and of the benchmarks share: types of arguments, the model and input that arguments
stand for, and the error that reaches the user as one line."""

import argparse
import os
import sys

import torch

from .. import dispatch
from ..measure.oracle import with_lively_norms
from ..models import MODELS, weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MIN_SIZE = 32  # the network halves its input five times
MAX_THREADS = 4096
VALUES = (
    3 + 2 * 16
)  # per pixel of an image: the image, and the stem's 64 channels of half the size before and after a pass


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line."""


class Help(argparse.HelpFormatter):
    """Shows the default of every option that has one and does not tell it in words, and no list that breaks the line."""

    def _metavar_formatter(self, action, default_metavar):
        if _long_list(action):
            return lambda count: (default_metavar,) * count
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action):
        default, text = action.default, action.help or ""
        if _long_list(action):
            text += f"{';' if text else ''} one of {', '.join(action.choices)}"
        if default is None or default is False or default == argparse.SUPPRESS or "default" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        return f"{text} (default: {shown})".replace("%", "%%")


def _long_list(action):
    return action.metavar is None and action.choices is not None and sum(len(name) + 1 for name in action.choices) > 24


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of leaving the process. Its help shows defaults."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": Help, **options})

    def error(self, message):
        raise UsageError(message)


def at_least(minimum, kind=int, maximum=sys.float_info.max):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {text}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"must be at most {maximum}, not {text}")
        return value

    return parse


def shape_of(text):
    """ "32x3x224x224" -> (32, 3, 224, 224)"""
    sizes = text.lower().split("x")
    if len(sizes) != 4 or not all(size.isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(f"should be such as 8x3x224x224, not {text}")
    n, c, h, w = map(int, sizes)
    if n < 1 or c != 3 or min(h, w) < MIN_SIZE:
        raise argparse.ArgumentTypeError(
            f"needs a batch, 3 channels and at least {MIN_SIZE}x{MIN_SIZE} pixels, not {text}"
        )
    return n, c, h, w


def device_of(args):
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device")
    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def backend_of(args):
    try:
        return dispatch.backend(args.backend)
    except RuntimeError as e:
        raise UsageError(str(e)) from None


def model_of(args, device, dtype=torch.float32):
    """The model, in evaluation. Without weights its batch norms are made lively, so that a comparison means something."""
    build, kwargs = MODELS[args.model], {}
    try:
        state = weights.resolve(args.model, args.weights, True, kwargs)
        model = weights.filled(build(**kwargs), state, args.weights)
    except (OSError, ValueError, RuntimeError) as e:  # a wrong file, wrong keys, no network
        raise UsageError(str(e)) from e
    if state is None:
        with_lively_norms(model)
    return model.eval().to(device, dtype)


def check_fits(batch, height, width, device):
    """Raises UsageError where a float32 network cannot run on such images, since their first maps exceed the memory."""
    if device == "cuda":
        memory = torch.cuda.mem_get_info()[1]
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows
        return
    if 4 * VALUES * batch * height * width > memory:
        raise UsageError(f"batch {batch} at {height}x{width} does not fit into memory, which has {memory / 1e9:.0f} GB")


def input_of(args, device):
    check_fits(args.batch, args.size, args.size, device)
    return torch.randn(args.batch, 3, args.size, args.size, device=device).to(DTYPES[args.dtype])
