"""Contexts and settings of torch that a forward may change for a part of itself: autocast, gradients, checkpoints, flags.

A program has no such parts, so a forward that changes one of them has none. A trace compares them at every node with their
state at entry. A forward that sets a flag to the value which it has already would not be noticed, so half of the traces begin
with every flag set and half with none.
"""

import contextlib

import torch

# name: (how to read it, how to set it)
_FLAGS = {
    "autocast (cpu)": (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    "autocast (cuda)": (lambda: torch.is_autocast_enabled("cuda"), lambda on: torch.set_autocast_enabled("cuda", on)),
    "autocast's cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        lambda on: torch._C._set_deterministic_algorithms(
            on, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
        ),
    ),
    "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "cuDNN": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    "cuDNN's benchmark": (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
    "cuDNN's determinism": (torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
}  # fmt: skip


@contextlib.contextmanager
def entered(on, grad):
    """Context manager: every flag is `on`, gradients are on or off, inference mode where neither excludes it."""
    before = [(put, get()) for get, put in _FLAGS.values()]
    try:
        for _, put in _FLAGS.values():
            put(on)
        with torch.inference_mode(on and not grad), torch.set_grad_enabled(grad):
            yield
    finally:
        for put, value in before:
            put(value)


def state():
    """{name: value} of everything that is compared."""
    found = {name: get() for name, (get, _) in _FLAGS.items()}
    found |= {
        "the dtype of autocast (cpu)": torch.get_autocast_dtype("cpu"),
        "the dtype of autocast (cuda)": torch.get_autocast_dtype("cuda"),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradient mode": torch.is_grad_enabled(),
        "hooks of saved tensors": (
            torch._C._autograd._saved_tensors_hooks_is_enabled(),
            torch._C._autograd._top_saved_tensors_default_hooks(False),
        ),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "forward-mode differentiation": torch.autograd.forward_ad._current_level,
        "the default dtype": torch.get_default_dtype(),
        "the precision of matrix products": torch._C._get_fp32_precision_getter("cuda", "matmul"),
        "the precision of convolutions": torch._C._get_fp32_precision_getter("cuda", "conv"),
        "the number of threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {"the CUDA device": torch.cuda.current_device(), "the CUDA stream": torch.cuda.current_stream()}
    return found


def changed(entry, depth):
    """The name of what is no longer as in `entry`, a `state()`, or None. `depth`: how many modes of functions were active.

    A handler of such a mode runs with fewer modes than were active.
    """
    if torch._C._len_torch_function_stack() > depth:
        return "modes of torch functions"
    now = state()
    return (
        None if now == entry else next(name for name in entry.keys() | now.keys() if now.get(name) != entry.get(name))
    )
