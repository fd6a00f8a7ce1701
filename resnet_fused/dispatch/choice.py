"""Which backend runs an op, and why. A pure question: nothing here launches or allocates.

What was asked for, else what was measured to be fastest, else the first of the table that runs it by default. What that one
refuses, its `otherwise` runs. A convolution that no backend has a kernel for is composed: torch's, then one fused pass.
"""

import functools

import torch

from ..kernels import layout, torch_convolution
from ..kernels.epilogue import ACTIVATIONS, RELU
from ..kernels.precision import tf32_allowed
from ..kernels.table import BACKENDS, EAGER, TORCH
from ..kernels.triton import schedule
from ..measure import remembered
from .able import why_not
from .asked import Choice, asked_for, configuration, note, note_key, observed
from .remembered import Remembered

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRADIENTS = ("conv_input_grad", "conv_weight_grad")  # of a convolution: torch's own where no kernel runs by default


def _why_not(x, others):
    """Why no kernel can take these tensors, or None."""
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype}"
    if x.numel() == 0:
        return "empty"
    for t in others:
        if t is not None and t.dtype != x.dtype:
            return f"dtypes {x.dtype} and {t.dtype}"
    if layout.format_of(x) is None:
        return f"strides {tuple(x.stride())} of shape {tuple(x.shape)}"
    return None


def automatic(op, x, convolution=None):
    """The default choice for `op` on `x`, where nothing was measured and nothing asked for."""
    device, missing, gradient = x.device.type, [], op in GRADIENTS
    for backend in BACKENDS.values():
        if backend.default is None or backend.device != device or (gradient and op not in backend.kernels):
            continue
        runs, reason = backend.default(op, convolution)
        if not runs:
            return Choice(TORCH.name, reason)
        if (why := why_not(backend, op, x.device)) is None:
            return Choice(backend.name, f"{reason}: {'; '.join(missing)}" if missing else reason)
        missing.append(why)
    if gradient:
        return Choice(TORCH.name, "torch's own where nothing else was asked for or measured")
    return Choice(EAGER.name, "; ".join(missing) or f"device {device}")


def default_backend(device_type):
    """The first of the table that runs ops on such a device by default, whether it can here or not; None: nothing does."""
    return next((b for b in BACKENDS.values() if b.default is not None and b.device == device_type), None)


def for_blocks(device, ops):
    """(the backend whose kernel may run whole blocks on a torch.device, the first of `ops` that it has), or None."""
    for backend in (BACKENDS.get(asked_for()), default_backend(device.type)):
        for op in ops if backend is not None else ():
            if op in backend.kernels and backend.takes(device.type) and backend.why_not(device) is None:
                return backend, op
    return None


def _key(op, x, others, convolution):
    precision = tf32_allowed() if op.startswith("conv") and x.dtype == torch.float32 else None
    detail, memory_format = (), layout.format_of(x)
    if convolution is not None:
        detail = convolution.weight, *convolution.geometry
        if others:
            if _gives_channels_last(op, x, others[0], convolution):
                memory_format = layout.CHANNELS_LAST  # also of an input with both formats
            if memory_format is not None and not others[0].is_contiguous(memory_format=memory_format):
                detail = ("weight copied", *detail)  # into that format, at every call
    return _text_key(op, x.dtype, memory_format, x.shape, sum(t is not None for t in others), *detail, precision)


def _gives_channels_last(op, x, weight, convolution):
    """Whether a kernel may run: the input and the result of the convolution are channels_last."""
    if not layout.is_channels_last(x):
        return False
    # The pool is always written in channels_last, and the map before it is never written.
    return op == "conv_bn_relu_pool" or layout.gives_channels_last(x, weight, convolution.out_shape)


_text_key = functools.lru_cache(maxsize=4096)(remembered.key)


def _measured(op, x, others, convolution):
    """The choice that was measured for such tensors on this device, if it can run."""
    if x.device.type not in ("cpu", "cuda"):
        return None
    entries = remembered.table(x.device).entries
    entry = entries.get(_key(op, x, others, convolution)) if entries else None
    if entry is None or (b := BACKENDS.get(entry.choice)) is None or not b.takes(x.device.type):
        return None
    config = entry.config.get(entry.choice)
    return Choice(entry.choice, entry.reason(), config) if why_not(b, op, x.device, config) is None else None


def _handed_on(op, x, convolution, choice, asked):
    """`choice`, or what runs in its place where its backend does not."""
    backend = BACKENDS[choice.backend]
    why = why_not(backend, op, x.device, choice.config)
    if why is None and (convolution is None or (why := backend.refusal(op, convolution)) is None):
        return choice, asked
    if op in BACKENDS[backend.otherwise].kernels:
        return _handed_on(op, x, convolution, Choice(backend.otherwise, why), asked)
    return automatic(op, x, convolution), False


def pick(op, x, *others, convolution=None, activation=RELU):
    """(the backend for `op` on `x` and the tensors that must match it, whether it was asked for or measured).

    None among `others` is skipped. `convolution`: the shapes.Convolution that x goes through, followed
    by `activation`; None: the op has none.
    """
    name = asked_for()
    note_key(lambda: _key(op, x, others, convolution))
    if (why := _why_not(x, others)) is not None:
        return Choice(EAGER.name, why), name == EAGER.name
    asked = name != "auto"
    if not asked:
        measured = _measured(op, x, others, convolution)
        if measured is None:
            choice = automatic(op, x, convolution)
        else:
            choice, asked = _handed_on(op, x, convolution, measured, True)
    elif name not in BACKENDS or not BACKENDS[name].takes(x.device.type):
        return Choice(EAGER.name, f"backend {name!r} does not take {x.device.type} tensors"), name == EAGER.name
    else:
        choice = Choice(name, f"backend {name!r} was asked for", configuration())
        choice, asked = _handed_on(op, x, convolution, choice, asked)
    weight = others[0] if others else x
    if (
        convolution is not None
        and choice.backend not in (TORCH.name, EAGER.name)
        and not _gives_channels_last(op, x, weight, convolution)
    ):
        choice = Choice(TORCH.name, "contiguous NCHW: torch's convolution, then one fused pass")
    backend = BACKENDS[choice.backend]
    composed = convolution is not None and backend in (TORCH, EAGER)
    if composed and (wrong := torch_convolution.why_wrong_of(convolution, x.device.type)) is not None:
        choice = Choice(choice.backend, f"{wrong}: in float32, rounded once, then one pass")
    if convolution is not None and activation not in backend.activations and backend.kernels.get(op) is not None:
        why = f"{choice.backend} has no {ACTIVATIONS[activation]}: torch's convolution, then one fused pass"
        choice = Choice(TORCH.name, why)
    return choice, asked


_remembered = Remembered()


def _remember(ask, op, x, others, convolution, activation):
    """`ask(op, x, others, convolution, activation)`, a noted choice, or what it was before. A fallback to eager is not
    remembered, since STRICT mode must see it."""
    if observed():
        return ask(op, x, others, convolution, activation)
    choices = _remembered.answers(x.device, x.dtype)
    # The strides of a weight decide the format of a result, and so do those of x.
    weight = None if convolution is None else others[0].stride()
    key = ask, op, x.shape, x.stride(), weight, convolution, activation, *[t is None or t.dtype for t in others]
    choice = choices.get(key)
    if choice is None:
        choice = ask(op, x, others, convolution, activation)
        if choice.backend != EAGER.name:
            choices[key] = choice
    return choice


def choose(op, x, *others, convolution=None, activation=RELU):
    """`pick`, noted."""
    return _remember(_choose, op, x, others, convolution, activation)


def _choose(op, x, others, convolution, activation):
    return note(op, x, *pick(op, x, *others, convolution=convolution, activation=activation))


def picked(op, x, *others, convolution=None):
    """The choice of `pick`, not noted: for callers that may run something else after all."""
    return _remember(_picked, op, x, others, convolution, RELU)


def _picked(op, x, others, convolution, activation):
    return pick(op, x, *others, convolution=convolution)[0]


def choose_conv_stats(x, weight, convolution):
    """The backend of a convolution with batch statistics in its epilogue; "torch": a convolution, then another pass.

    The kernel cannot cut its reduction (statistics need finished sums), so below half a wave of tiles it leaves a GPU idle
    and torch's split convolution wins, for all that the other pass costs (predicted, not measured).
    """
    return _remember(_choose_conv_stats, "conv_stats", x, (weight,), convolution, RELU)


def _choose_conv_stats(op, x, others, convolution, activation):
    choice, asked = pick(op, x, *others, convolution=convolution)
    n, k, p, q = convolution.out_shape
    tiles = -(-n * p * q // 128) * -(-k // 128)
    if x.device.type == "cuda" and not asked and choice.backend != EAGER.name and tiles < schedule.SMS // 2:
        choice = Choice(TORCH.name, f"{tiles} tiles are too few for the kernel (predicted, not measured)")
    return note(op, x, choice, asked)


def choose_conv_input_grad(grad, weight, convolution):
    """The backend of the gradient of a convolution's input: one with a kernel for it where that was asked for, measured or
    runs by default, else "torch". Torch's own is noted only where there was a choice: it is no op of ours.
    """
    return _remember(_choose_conv_input_grad, "conv_input_grad", grad, (weight,), convolution, RELU)


def _choose_conv_input_grad(op, grad, others, convolution, activation):
    note_key(lambda: _key(op, grad, (), convolution))
    return _choose_gradient(op, grad, others, convolution, _measured(op, grad, (), convolution))


def choose_conv_weight_grad(grad, x, convolution):
    """The backend of the gradient of a convolution's weight, as `choose_conv_input_grad`; nothing measures it."""
    return _remember(_choose_conv_weight_grad, "conv_weight_grad", grad, (x,), convolution, RELU)


def _choose_conv_weight_grad(op, grad, others, convolution, activation):
    return _choose_gradient(op, grad, others, convolution, None)


def _choose_gradient(op, grad, others, convolution, measured):
    name = asked_for()
    choice = measured or automatic(op, grad, convolution)
    if name != "auto":
        choice = Choice(name, f"backend {name!r} was asked for", configuration())
    elif measured is None and choice.backend == TORCH.name:
        return choice
    backend = BACKENDS.get(choice.backend)
    if backend is None or op not in backend.kernels:
        return Choice(TORCH.name, "torch's own where nothing else was asked for or measured")
    if backend is not TORCH:
        if (why := _why_not(grad, others) or backend.refusal(op, convolution)) is not None:
            choice = Choice(TORCH.name, why)
        elif not backend.takes(grad.device.type):
            choice = Choice(TORCH.name, f"backend {choice.backend!r} does not take {grad.device.type} tensors")
        elif (why := why_not(backend, op, grad.device, choice.config)) is not None:
            choice = Choice(TORCH.name, why)
        elif not layout.is_channels_last(grad):
            choice = Choice(TORCH.name, "contiguous NCHW")
    return note(op, grad, choice)


def choose_fp8(op, x):
    """The backend of an op on e4m3 values: the only one with kernels for them, or `eager` if that was asked for."""
    if asked_for() == EAGER.name:
        return note(op, x, Choice(EAGER.name, f"backend {EAGER.name!r} was asked for"), asked=True)
    for backend in BACKENDS.values():
        if op in backend.kernels and backend is not EAGER:
            if (why := why_not(backend, op, x.device)) is None and backend.takes(x.device.type):
                return note(op, x, Choice(backend.name, "the only kernels for e4m3"))
            raise RuntimeError(f"{op}: {why or f'no kernel takes {x.device.type} tensors'}")
    raise RuntimeError(f"{op}: no backend has a kernel for it")


def kernel(choice, op):
    """The launcher of `op` by the backend of `choice`; None: the op has to be composed of others."""
    launcher = BACKENDS[choice.backend].kernels.get(op)
    if launcher is None or not choice.config:
        return launcher
    return functools.partial(launcher, config=choice.config)
