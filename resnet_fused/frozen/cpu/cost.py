"""What a layer should cost on any CPU, roughly: enough to notice a time that cannot be right."""

import math
import statistics

CALL, PRODUCTS, BYTES = 2e-5, 1e11, 2e10  # seconds of a call; products and bytes per second
OFF = 5.0  # kernels of one kind lie within 3 times the same multiple of `seconds` (ResNet-34, 2 cores of Zen 4, 2026-12-01)


def seconds(step, dtype):
    """Of the convolution of `step`, by its products and by the bytes of its maps and weights."""
    weight, out = step.conv.weight.shape, step.conv_shape()
    values = math.prod(step.shape) + math.prod(out) * (2 if step.adds else 1) + math.prod(weight)
    return CALL + math.prod(out) * math.prod(weight[1:]) / PRODUCTS + values * dtype.itemsize / BYTES


class Siblings:
    """The times of the layers of a network, each in multiples of what it should cost."""

    def __init__(self):
        self.multiples = {}  # {candidate: [multiple]}

    def plausible(self, step, dtype, measure):
        """The times {candidate: seconds} of `measure()`. It is called again where one is 5 times off what earlier layers show
        for the same candidate; a time that is off twice is how it is."""
        cost = seconds(step, dtype)
        times = measure()
        if any(self._is_off(candidate, s / cost) for candidate, s in times.items()):
            times = measure()
        for candidate, s in times.items():
            self.multiples.setdefault(candidate, []).append(s / cost)
        return times

    def _is_off(self, candidate, multiple):
        known = self.multiples.get(candidate, ())
        usual = statistics.median(known) if len(known) > 1 else multiple
        return not usual / OFF <= multiple <= usual * OFF
