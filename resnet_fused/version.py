"""What the package and the compiled library must agree on."""

__version__ = "0.1.0"
# Raised when a schema in csrc/register changes: a library built for another number is not used.
ABI = 12
