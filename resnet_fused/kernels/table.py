"""The list of all backends. By default the first backend that can run an op runs it."""

from . import cpu, cuda, eager, triton
from .hopper.plane import cuda as plane
from .hopper.strip import cuda as strip

TORCH, EAGER = eager.TORCH, eager.EAGER

# The tests add the emulator as a backend here.
BACKENDS = {
    backend.name: backend
    for backend in (cuda.BACKEND, triton.BACKEND, plane.BACKEND, strip.BACKEND, cpu.BACKEND, TORCH, EAGER)
}
