"""The passes over memory that every compiled library has, on CPUs and GPUs. No other module calls these ops of a
library."""

import functools

# ops of the library that are launchers themselves
RAW = ("add_relu", "add_relu_backward", "bn_stats", "bn_stats_merge")


def bn_relu(library, x, epilogue, out):
    """out = epilogue(x); out may be x or the residual."""
    (mean, var, invstd, weight, bias, eps), residual, activation = epilogue
    library.bn_relu(x, mean, invstd if var is None else var, weight, bias, residual, out, eps, activation)


def bn_add_bn_relu(library, x, norm, z, norm_z, out):
    """out = relu(norm(x) + norm_z(z))."""
    library.bn_add_bn_relu(
        x, norm.mean, norm.var_or_invstd, norm.weight, norm.bias, norm.eps,
        z, norm_z.mean, norm_z.var_or_invstd, norm_z.weight, norm_z.bias, norm_z.eps, out,
    )  # fmt: skip


def bn_relu_backward_reduce(library, grad, x, out, norm, sum_g, sum_gx, activation, grad2=None, masked=None):
    """Sums per channel of g, the gradient before the activation, and of g * xhat. x and norm are None for sum_g
    alone."""
    mean, var_or_invstd, eps = (None, None, None) if norm is None else (norm.mean, norm.var_or_invstd, norm.eps)
    library.bn_relu_backward_reduce(grad, x, out, mean, var_or_invstd, sum_g, sum_gx, eps, activation, grad2, masked)


def bn_relu_backward_apply(
    library, grad, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, grad2=None
):  # fmt: skip
    library.bn_relu_backward_apply(
        grad, x, out, norm.mean, norm.var_or_invstd, norm.weight, sum_g, sum_gx, grad_x, grad_residual, norm.eps, activation,
        grad2,
    )  # fmt: skip


LAUNCHERS = {
    "bn_relu": bn_relu,
    "bn_add_bn_relu": bn_add_bn_relu,
    "bn_relu_backward_reduce": bn_relu_backward_reduce,
    "bn_relu_backward_apply": bn_relu_backward_apply,
}
OPS = (*RAW, *LAUNCHERS)


def launcher(library, op):
    """The launcher of one of OPS, by the ops of `library`."""
    return functools.partial(LAUNCHERS[op], library) if op in LAUNCHERS else getattr(library, op)
