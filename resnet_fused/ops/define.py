"""The library in which all ops are registered, what every op checks before it changes anything, and the situations that
are left to torch's own operators."""

import numbers

import torch

_implementations = {}  # {name of an op: its implementation}


class _Library(torch.library.Library):
    """A library whose ops run at once where nothing wants a gradient. torch's kernel for autograd calls the dispatcher a
    second time, which takes 10 us of an op's 35 (measured: AMD Zen 4, torch 2.13, 2026-12-01)."""

    def impl(self, op_name, fn, dispatch_key="", **options):
        if dispatch_key == "Autograd":
            fn = _without_gradient(_implementations[op_name], fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _without_gradient(implementation, with_gradient):
    """A kernel for autograd: `with_gradient`, or `implementation` where that is what torch would call in the end."""

    def kernel(keyset, *args):
        below = keyset & torch._C._after_autograd_keyset
        if below.highestPriorityTypeId() not in _DEVICES or (
            torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        ):
            return with_gradient(keyset, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return implementation(*args)

    return kernel


_DEVICES = torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA
LIB = _Library("resnet_fused", "DEF")
# The kernels read dense tensors in the format that the fake saw, so the compiler must not change strides before the op.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def define(schema, implementation, fake):
    """Registers one op `resnet_fused::<schema>` with its implementation for CPU and CUDA and its fake."""
    name = schema[: schema.index("(")]
    _implementations[name] = implementation
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


def check(op, x, eps=0.0):
    """Raises TypeError where the arguments of `op` are of a wrong kind."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: x should be a tensor, got a {type(x).__name__}")
    if isinstance(eps, str) or not hasattr(eps, "__float__"):
        raise TypeError(f"{op}: eps should be a number, got {eps!r}")


def adds(residual, shape, x):
    """Whether a kernel can add `residual` to a result of `shape` that is otherwise like `x`."""
    return (
        isinstance(residual, torch.Tensor)
        and residual.shape == shape
        and residual.dtype == x.dtype
        and residual.device == x.device
        and residual.layout == x.layout
    )


def check_residual(op, shape, x, residual):
    """Raises where torch could not add `residual` in place to a result of `shape` that is otherwise like `x`.

    Called before batch norm moves its running statistics, which torch has done by the time that it adds. A compiler cannot
    trace the question about dtypes, and asks nothing."""
    if residual is None or torch.compiler.is_compiling() or adds(residual, shape, x):
        return
    if not isinstance(residual, (torch.Tensor, numbers.Number)):
        raise TypeError(f"{op}: residual should be a tensor or a number, got a {type(residual).__name__}")
    if not torch.can_cast(torch.result_type(x, residual), x.dtype):
        what = residual.dtype if isinstance(residual, torch.Tensor) else repr(residual)
        raise RuntimeError(f"{op}: residual {what} cannot be added to {x.dtype}")
    if not isinstance(residual, torch.Tensor):
        return
    sizes = tuple(residual.shape)
    if len(sizes) > len(shape) or any(r not in (1, s) for r, s in zip(sizes[::-1], tuple(shape)[::-1], strict=False)):
        raise RuntimeError(f"{op}: residual has shape {sizes}, the result {tuple(shape)}")
    if sizes and (residual.device != x.device or residual.is_mkldnn != x.is_mkldnn):
        where, here = (f"{t.layout} on {t.device}" for t in (residual, x))
        raise RuntimeError(f"{op}: residual is {where}, the result {here}")


def by_torch(grad):
    """Whether a backward is composed of torch's operators: for a double backward (create_graph=True), for a batch of
    gradients (vmap, is_grads_batched=True, jacobian(vectorize=True)), and in forward-mode AD. These see through torch's
    operators, but not through kernels."""
    of = torch._C._functorch
    batched = of.is_batchedtensor(grad) or of.is_gradtrackingtensor(grad) or of.is_legacy_batchedtensor(grad)
    return torch.is_grad_enabled() or batched or torch.autograd.forward_ad._current_level >= 0


def cannot_be_saved(x):
    """Whether autograd refuses to save `x`, which it finds out after an op has run and statistics have moved."""
    return not torch.compiler.is_compiling() and torch.is_grad_enabled() and x.is_inference()


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
