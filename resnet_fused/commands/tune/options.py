"""The ways to run a call that are worth measuring: backends, and launch configurations of those that have several."""

from ... import dispatch
from ...kernels.shapes import Convolution

# The ops of a convolution: torch's own, followed by a pass if it is a forward op, is a way to run them.
CONVOLUTIONS = ("conv_bn_relu", "conv_bn_relu_pair", "conv_bn_relu_pool", "conv_stats", "conv_input_grad")
# The op by which a backend is known to run a call that consists of several.
PART = {"bn_relu_backward": "bn_relu_backward_apply", "conv_bn_relu_backward": "bn_relu_backward_apply"}


def convolution_of(call):
    """What the dispatcher is told of a convolution besides its tensors; None for other calls."""
    if call.op not in CONVOLUTIONS:
        return None
    given = dict(call.arguments)
    x, weight = given["grad" if call.op == "conv_input_grad" else "x"], given["weight"].shape
    if call.op == "conv_input_grad":
        weight = weight[1], weight[0], *weight[2:]
    geometry = given["stride"], given["padding"], given.get("dilation", (1, 1)), given.get("groups", 1)
    return Convolution(x.shape, weight, x.dtype, *geometry)


def options(call, device):
    """{name: (backend, launch configuration or None)} that may run `call`; "eager" is always one of them, of the
    gradient of a convolution's input "torch"."""
    op, convolution = PART.get(call.op, call.op), convolution_of(call)
    able = [b for b in dispatch.BACKENDS.values() if dispatch.worth_measuring(b, op, device, convolution)]
    found = {backend.name: (backend.name, None) for backend in able}
    # What needs no compiler first: there may be no time for the rest.
    for backend in sorted(able, key=lambda backend: backend.compiles):
        for config in dispatch.configurations(backend, op, convolution, device) if convolution is not None else ():
            found[" ".join([backend.name, *(f"{k}={v}" for k, v in config.items())])] = backend.name, config
    return found
