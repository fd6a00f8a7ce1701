"""The one list of backends: by default the first that can runs an op."""

from . import cpu, cuda, eager, triton
from .hopper.plane import cuda as plane
from .hopper.strip import cuda as strip

TORCH, EAGER = eager.TORCH, eager.EAGER

# A backend that is proven elsewhere (the emulator of the tests) is added here by its owner.
BACKENDS = {
    backend.name: backend
    for backend in (cuda.BACKEND, triton.BACKEND, plane.BACKEND, strip.BACKEND, cpu.BACKEND, TORCH, EAGER)
}
