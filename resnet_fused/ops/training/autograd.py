"""The gradient of the training ops: one set of functions, used in two ways.

A compiler sees the registered op, which is functional, and updates running statistics after it. Eager mode runs a
Function that updates the statistics before it saves anything. A checkpoint that recomputes stops at the last saved
tensor, and torch's batch norm has updated its statistics by then.
"""

import torch

from ..define import LIB, by_torch


def register(name, call_of):
    """Gives the op `name` its gradient. call_of: from the inputs of the op after x and tensors to its call (see
    `run`)."""

    def setup(ctx, inputs, output):
        x, tensors, *constants = inputs
        ctx.call, ctx.count, ctx.constants = call_of(*constants), len(tensors), len(constants)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        needs = ctx.needs_input_grad[1 : 1 + ctx.count]
        ctx.save_for_backward(x, *tensors, *ctx.call.kept(output, tensors, needs))

    def backward(ctx, *grads):
        grad = grads[0][0] if isinstance(grads[0], list) else grads[0]
        found = _gradients(ctx, grad, ctx.needs_input_grad[0], list(ctx.needs_input_grad[1]))
        return found[0], found[1:], *[None] * ctx.constants

    torch.library.register_autograd(f"resnet_fused::{name}", backward, setup_context=setup, lib=LIB)


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, finish, x, *tensors):
        output = call.forward(x, list(tensors))
        finish(call.statistics(output))
        ctx.call, ctx.count = call, len(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, *call.kept(output, tensors, ctx.needs_input_grad[3:]))
        return output[0]

    @staticmethod
    def backward(ctx, grad):
        return None, None, *_gradients(ctx, grad, ctx.needs_input_grad[2], list(ctx.needs_input_grad[3:]))


def _gradients(ctx, grad, want_x, wanted):
    x, *rest = ctx.saved_tensors
    tensors, kept = rest[: ctx.count], rest[ctx.count :]
    wants = [want_x, *wanted]
    if grad is None:
        return [None] * len(wants)
    if by_torch(grad):
        return _by_torch(ctx.call, grad, x, tensors, wants)
    found = ctx.call.backward(grad, x, tensors, kept, want_x, wanted)
    return [g if want else None for g, want in zip(found, wants, strict=True)]


def _by_torch(call, grad, x, tensors, wants):
    if call.groups.strip(","):
        raise RuntimeError(
            "no double backward, and no batch of gradients, through batch statistics over several processes: "
            "use nn.BatchNorm2d for it"
        )
    inputs, twice = [t for t, want in zip([x, *tensors], wants, strict=True) if want], torch.is_grad_enabled()
    with torch.enable_grad():
        y = call.reference(x, tensors)
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=twice))
    return [next(found) if want else None for want in wants]


def run(call, finish, x, tensors):
    """The first output of `call` on x and tensors, differentiable. finish(statistics) updates running statistics.

    call.forward(x, tensors): the outputs of the op. call.statistics(outputs). call.kept(outputs, tensors, needs): what
    the backward needs besides x and tensors. call.backward(grad, x, tensors, kept, want_x, wanted). call.reference(x,
    tensors): the forward in torch's operators. call.groups: as in `encoding.encode`.
    """
    if torch.compiler.is_compiling():
        output = call.forward(x, tensors)
        finish(call.statistics(output))
        return output[0]
    return _Recorded.apply(call, finish, x, *tensors)
