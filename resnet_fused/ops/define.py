"""The library in which all ops are registered, and the situations that are left to torch's own operators."""

import torch

LIB = torch.library.Library("resnet_fused", "DEF")
# The kernels read dense tensors in the format that the fake saw, so the compiler must not change strides before the op.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def define(schema, implementation, fake):
    """Registers one op `resnet_fused::<schema>` with its implementation for CPU and CUDA and its fake."""
    name = schema[: schema.index("(")]
    LIB.define(schema, tags=TAGS)
    LIB.impl(name, implementation, "CPU")
    LIB.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"resnet_fused::{name}", fake, lib=LIB)


def call(op, implementation, *args):
    """`op(*args)`, or its implementation directly where the dispatcher would only take time.

    That is the case outside of compilers, dispatch modes and autograd. The dispatch of an op that Python registered
    takes 60 us (measured: 1 core of an Intel Xeon, torch 2.13, 2026-11-24), 2 ms of ResNet-34's 31 ms at batch 1.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return op(*args)
    records = torch.is_grad_enabled()
    for t in args:
        if isinstance(t, torch.Tensor) and (type(t) not in _PLAIN or (records and t.requires_grad)):
            return op(*args)
    return implementation(*args)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def why_not(x):
    """Why the op must be composed of torch's own operators, or None.

    Function transforms, forward-mode AD, tracing, ONNX export and modes of torch functions can see through torch's
    operators, but not through these ops.
    """
    if torch.compiler.is_compiling():
        return "ONNX export" if torch.onnx.is_in_onnx_export() else None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a function transform (vmap, grad, jvp)"
    if torch._C._len_torch_function_stack() > 0 and (mode := _mode_of_somebody()) is not None:
        return f"inside a mode of torch functions, {type(mode).__name__}"
    if torch.autograd.forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if torch.jit.is_tracing():
        return "inside torch.jit.trace"
    if x.device.type not in ("cpu", "cuda"):
        return f"device {x.device.type}"
    if x.dtype in (torch.float64, torch.complex64, torch.complex128):
        return f"dtype {x.dtype}"
    return None


def _mode_of_somebody():
    """A mode in force that may change what functions of torch compute, or None. Those of torch, such as a default device, do
    not."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return next((m for m in modes if type(m).__module__.partition(".")[0] not in ("torch", "resnet_fused")), None)
