"""Which backend runs an op on these tensors, and why.

`asked`: what was asked for, and who listens. `able`: whether a backend runs an op on a device. `choice`: asked for, else
measured, else the default. `remembered`: what was asked before. No module is named `choose`: a function of this package is.
"""

from ..kernels.backend import Backend
from ..kernels.precision import tf32_allowed
from ..kernels.table import BACKENDS, EAGER, TORCH
from .able import able, configurations, why_not, why_not_here, worth_measuring
from .asked import (
    Choice,
    FallbackError,
    asked_for,
    backend,
    backends,
    check_backend,
    configured,
    note,
    observed,
    record,
    record_keys,
    strict,
)
from .choice import (
    DTYPES,
    automatic,
    choose,
    choose_conv_input_grad,
    choose_conv_stats,
    choose_conv_weight_grad,
    choose_fp8,
    default_backend,
    for_blocks,
    kernel,
    pick,
    picked,
)
from .remembered import Remembered, setting
