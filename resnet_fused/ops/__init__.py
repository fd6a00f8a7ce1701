"""The fused ops. Each module has the reference formula, the registered op, its fake, its gradient and the public
function."""

from .add_relu import add_relu
from .bn_relu import bn_relu
from .conv_bn_relu import conv_bn_relu
from .conv_bn_relu_pair import conv_bn_relu_pair
from .conv_bn_relu_pool import conv_bn_relu_pool

__all__ = ["add_relu", "bn_relu", "conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool"]
