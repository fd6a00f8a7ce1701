"""Which backend runs an op, and why. A pure question: nothing here launches or allocates.

`cuda`: compiled CUDA kernels. `triton`: Triton kernels. `native`: compiled CPU kernels. `torch`: for convolutions, torch's
own convolution followed by one fused pass of another backend. `eager`: torch's own operators, unfused: the fallback.
`cuda_plane`: convolutions of large batches on Hopper. `cuda_strip`: 3x3 convolutions of 64 channels on Hopper. What these
two refuse, `cuda` runs.
"""

import functools

import torch

from ..kernels import cpu, layout, library
from ..kernels.table import BACKENDS, NARROW, NARROW_OPS, tf32_allowed
from ..kernels.triton import schedule
from ..measure import remembered
from .asked import Choice, asked_for, configuration, note, note_key

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _unfit(x, others):
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


_ON_CPU = {"conv_bn_relu": "Winograd F(2x2,3x3)", "conv_bn_relu_pool": "convolution and pooling in one pass"}


def automatic(op, x, detail=()):
    """The default choice for `op` on `x`, where nothing was measured and nothing asked for."""
    conv = op.startswith("conv")
    if op == "conv_input_grad":
        return Choice("torch", "torch's own where nothing else was asked for or measured")
    if x.device.type == "cuda":
        # Unmeasured defaults: compiled kernels where they exist; for the convolution in IEEE float32 torch's own,
        # since tensor cores do not help there.
        if conv and x.dtype == torch.float32 and not tf32_allowed():
            return Choice("torch", "IEEE float32: cuDNN's convolution, then one fused pass (predicted, not measured)")
        if (without_cuda := BACKENDS["cuda"].why_not()) is None:
            return Choice("cuda", "default on CUDA devices (predicted, not measured)")
        if (why := BACKENDS["triton"].why_not()) is None:
            return Choice("triton", f"no compiled CUDA kernels: {without_cuda}")
        return Choice("eager", f"{without_cuda}; {why}")
    if x.device.type == "cpu":
        if (why := library.why_absent()) is not None:
            return Choice("eager", why)
        if conv and (slower := cpu.verdict(op, x.dtype, x.shape, *detail)[1]) is not None:
            return Choice("torch", f"torch's convolution, then one fused pass: {slower}")
        return Choice("native", _ON_CPU.get(op, "default on CPUs"))
    return Choice("eager", f"device {x.device.type}")


def _key(op, x, others, detail):
    precision = tf32_allowed() if op.startswith("conv") and x.dtype == torch.float32 else None
    detail = tuple(tuple(part) if isinstance(part, list) else part for part in detail)
    return _text_key(op, x.dtype, layout.format_of(x), x.shape, sum(t is not None for t in others), *detail, precision)


_text_key = functools.lru_cache(maxsize=4096)(remembered.key)


def _measured(op, x, others, detail):
    """The choice that was measured for such tensors on this device, if it can run."""
    if x.device.type not in ("cpu", "cuda"):
        return None
    entries = remembered.table(x.device).entries
    entry = entries.get(_key(op, x, others, detail)) if entries else None
    if entry is None or (b := BACKENDS.get(entry.choice)) is None or not b.takes(x.device.type) or b.why_not():
        return None
    return Choice(entry.choice, entry.reason(), entry.config.get(entry.choice))


def _refused(name, op, x, detail):
    """Why a backend of NARROW does not run `op` on x, or None."""
    if op not in NARROW_OPS:
        return f"{name} has no kernel for {op}"
    weight, *geometry = detail
    return NARROW[name].refusal(x.shape, weight, x.dtype, *geometry)


def setting(device):
    """What besides the tensors decides a choice on a torch.device: equal settings, equal choices."""
    return asked_for(), configuration(), BACKENDS["native"], remembered.table(device).entries


def pick(op, x, *others, detail=()):
    """(the backend for `op` on `x` and the tensors that must match it, whether it was asked for or measured).

    None among `others` is skipped. `detail`: what else its speed depends on; of a convolution the weight's shape, stride,
    padding, dilation, groups.
    """
    name = asked_for()
    conv = op.startswith("conv")
    note_key(lambda: _key(op, x, others, detail))
    if (why := _unfit(x, others)) is not None:
        return Choice("eager", why), name == "eager"
    asked = name != "auto"
    if not asked:
        measured = _measured(op, x, others, detail)
        choice, asked = measured or automatic(op, x, detail), measured is not None
    elif name not in BACKENDS or not BACKENDS[name].takes(x.device.type):
        return Choice("eager", f"backend {name!r} does not take {x.device.type} tensors"), name == "eager"
    elif name == "native" and conv and (cannot := cpu.verdict(op, x.dtype, x.shape, *detail)[0]) is not None:
        choice = Choice("torch", f"torch's convolution, then one fused pass: {cannot}")
    elif name == "torch" and not conv:
        choice, asked = automatic(op, x), False
    else:
        choice = Choice(name, f"backend {name!r} was asked for", configuration())
    if choice.backend in NARROW and (why := _refused(choice.backend, op, x, detail)) is not None:
        choice = Choice(NARROW[choice.backend].others, why)
    if conv and choice.backend not in ("torch", "eager") and not layout.is_channels_last(x):
        choice = Choice("torch", "contiguous NCHW: torch's convolution, then one fused pass")
    return choice, asked


def choose(op, x, *others, detail=()):
    """`pick`, noted."""
    return note(op, x, *pick(op, x, *others, detail=detail))


def choose_conv_stats(x, weight, out, *detail):
    """The backend of a convolution with batch statistics in its epilogue; "torch": a convolution, then another pass.
    `detail`: stride, padding, dilation, groups.

    The kernel cannot cut its reduction (statistics need finished sums), so below half a wave of tiles it leaves a GPU idle
    and torch's split convolution wins, for all that the other pass costs (predicted, not measured).
    """
    choice, asked = pick("conv_stats", x, weight, detail=(weight.shape, *detail))
    tiles = -(-out.numel() // out.shape[1] // 128) * -(-out.shape[1] // 128)
    if x.device.type == "cuda" and not asked and choice.backend != "eager" and tiles < schedule.SMS // 2:
        choice = Choice("torch", f"{tiles} tiles are too few for the kernel (predicted, not measured)")
    return note("conv_stats", x, choice, asked)


def choose_conv_input_grad(grad, weight, *detail):
    """The backend of the gradient of a convolution's input: one of NARROW where it was asked for or measured, else "torch".

    `detail`: stride, padding, dilation, groups. Torch's own is noted only where there was a choice: it is no op of ours.
    """
    op, name, detail = "conv_input_grad", asked_for(), (weight.transpose(0, 1).shape, *detail)
    note_key(lambda: _key(op, grad, (), detail))
    if name == "auto":
        choice = _measured(op, grad, (), detail)
    else:
        choice = Choice(name, f"backend {name!r} was asked for", configuration())
    if choice is None or choice.backend not in (*NARROW, "torch"):
        return automatic(op, grad)
    if choice.backend in NARROW:
        if (why := _unfit(grad, (weight,)) or _refused(choice.backend, op, grad, detail)) is not None:
            choice = Choice("torch", why)
        elif not BACKENDS[choice.backend].takes(grad.device.type):
            choice = Choice("torch", f"backend {choice.backend!r} does not take {grad.device.type} tensors")
        elif not layout.is_channels_last(grad):
            choice = Choice("torch", "contiguous NCHW")
    return note(op, grad, choice)


def choose_fp8(op, x):
    """The backend of an op on e4m3 values: `triton`, the only one with kernels for them, or `eager` if that was asked for."""
    if asked_for() == "eager":
        return note(op, x, Choice("eager", "backend 'eager' was asked for"), asked=True)
    if (why := BACKENDS["triton"].why_not()) is not None or not BACKENDS["triton"].takes(x.device.type):
        raise RuntimeError(f"{op}: {why or f'no kernel takes {x.device.type} tensors'}")
    return note(op, x, Choice("triton", "the only kernels for e4m3"))


def kernel(choice, stem, op):
    """The function of backend `choice` that launches `op`, whose kernels live under `stem`."""
    function = BACKENDS[choice.backend].kernel(stem, op)
    if not choice.config:
        return function
    # Triton's launchers take one dictionary, the ops of the library an argument for each entry.
    given = {"config": choice.config} if choice.backend == "triton" else choice.config
    return functools.partial(function, **given)
