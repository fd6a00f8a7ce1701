"""The functions of single values that the library's kernels apply to the result of a folded convolution."""

POINTWISE = (None, "relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")  # csrc/cpu/base/pointwise.h


def number_of(step):
    """The number in the library of what follows the norm and the sum of a ConvBn."""
    return POINTWISE.index("relu" if step.relu else step.unary)
