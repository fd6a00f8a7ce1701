"""The compiled CUDA kernels as a backend (csrc/cuda), and the signature of every launcher of a convolution.

Weights may have any dense layout. x, out and residual are channels_last.
"""

import functools

import torch

from . import epilogue as activations
from . import gpu, layout, library, passes
from .backend import Backend, Kernels
from .precision import tf32_allowed
from .shapes import Convolution

TILE = 64  # output channels of the smallest tile; with fewer in a group most of the products are not used
MOST_SPLITS = 32  # slices of a reduction that are worth measuring


@gpu.per_device
def why_not(device):
    """Why the compiled CUDA kernels cannot run on a torch.device, or None."""
    if (why := library.why_absent()) is not None:
        return why
    if not library.has_cuda():
        return f"the compiled library has no CUDA part: {library.build_info()['without_cuda']}"
    return gpu.why_no_device(device) or gpu.why_not_library(device)


def _nhwc(weight):
    return layout.in_format(weight, layout.CHANNELS_LAST)


# The stable ABI cannot read torch's flags, so every launcher passes whether TF32 is allowed. `config`: the tile, the
# number of slices of the reduction, whether the slices are the blocks of a cluster, and whether weights may be fetched
# early (csrc/ops.h).
def conv_bn_relu(library, allow_tf32, x, weight, epilogue, out, convolution, config=None):
    """out = epilogue(conv(x, weight))."""
    mean, var, _, bn_weight, bn_bias, eps = epilogue.norm
    library.conv_bn_relu(
        x, _nhwc(weight), mean, var, bn_weight, bn_bias, epilogue.residual, out, *convolution.geometry, eps,
        epilogue.activation, allow_tf32=allow_tf32, **(config or {}),
    )  # fmt: skip


def conv_bn_relu_pair(
    library, allow_tf32, x, weight, norm, out, convolution, weight2, norm2, out2, convolution2, config=None
):
    """out = relu(norm(conv(x, weight))), out2 = norm2(conv(x, weight2)). Both convolutions have one group."""
    library.conv_bn_relu_pair(
        x, _nhwc(weight), norm.mean, norm.var, norm.weight, norm.bias, out, *convolution.geometry[:3], norm.eps,
        _nhwc(weight2), norm2.mean, norm2.var, norm2.weight, norm2.bias, out2, convolution2.stride,
        convolution2.padding, norm2.eps, allow_tf32=allow_tf32, **(config or {}),
    )  # fmt: skip


def conv_bn_relu_pool(library, allow_tf32, x, weight, epilogue, out, convolution, config=None):
    """out = max_pool(epilogue(conv(x, weight)), 3, stride 2, padding 1). The epilogue has no residual."""
    activations.check(epilogue.activation, (activations.RELU,), "conv_bn_relu_pool: activation")
    norm = epilogue.norm
    library.conv_bn_relu_pool(
        x, _nhwc(weight), norm.mean, norm.var, norm.weight, norm.bias, out, convolution.stride, convolution.padding,
        norm.eps, allow_tf32=allow_tf32, **(config or {}),
    )  # fmt: skip


def conv_stats(
    library, allow_tf32, x, weight, out, mean, invstd, running_mean, running_var, num_batches_tracked, convolution,
    momentum, eps, config=None,
):  # fmt: skip
    """out = conv(x, weight), and the results of `bn_stats` for out."""
    library.conv_stats(
        x, _nhwc(weight), out, mean, invstd, running_mean, running_var, num_batches_tracked, *convolution.geometry,
        momentum, eps, allow_tf32=allow_tf32, **(config or {}),
    )  # fmt: skip


def conv_block(library, allow_tf32, x, tensors, numbers, eps, projection, shortcut):
    """A whole residual block in evaluation; None for tensors that no kernel takes (csrc/register/cuda/block.cpp)."""
    return library.conv_block(x, tensors, numbers, eps, projection, shortcut, allow_tf32)


def training_blocks(library, allow_tf32, x, tensors, numbers, eps, own):
    """A run of residual blocks in training (csrc/register/cuda/training.cpp)."""
    return library.training_blocks(x, tensors, numbers, eps, own, allow_tf32)


CONVOLUTIONS = {
    "conv_bn_relu": conv_bn_relu,
    "conv_bn_relu_pair": conv_bn_relu_pair,
    "conv_bn_relu_pool": conv_bn_relu_pool,
    "conv_stats": conv_stats,
    "conv_block": conv_block,
    "training_blocks": training_blocks,
}


def kernels(namespace):
    """{op: launcher} by the ops of the library that `namespace()` returns. A launcher holds the TF32 flag of the time
    when it was looked up."""

    @functools.cache
    def launcher(op):
        return passes.launcher(namespace(), op)

    def find(op):
        if op in CONVOLUTIONS:
            return functools.partial(CONVOLUTIONS[op], namespace(), tf32_allowed())
        return launcher(op)

    return Kernels((*passes.OPS, *CONVOLUTIONS, "training_blocks_backward", "pool_linear"), find)


def configurations(namespace, device, op, convolution):
    """The tiles and slices worth measuring, by falling prediction. Configurations whose slices are the blocks of a
    cluster come last."""
    if op not in ("conv_bn_relu", "conv_bn_relu_pair", "conv_stats"):
        return []
    if op == "conv_bn_relu_pair" and convolution.x[1] * convolution.dtype.itemsize % 16:
        return []  # one launch for both copies channels by 16 bytes
    x, weight = (
        torch.empty(shape, dtype=convolution.dtype, device=device).to(memory_format=layout.CHANNELS_LAST)
        for shape in (convolution.x, convolution.weight)
    )
    text = namespace().conv_choices(
        x, weight, *convolution.geometry, 1 if op == "conv_stats" else MOST_SPLITS, tf32_allowed(),
        clusters=op == "conv_bn_relu",
    )  # fmt: skip
    found = tiles(text)
    if op == "conv_stats":  # conv_stats needs finished sums, so it has no slices
        return [{"tile": config["tile"]} for config in found[1:]]
    # The default of a pair is chosen for both of its convolutions. The library's list is that of the first convolution.
    return found[1:] if op == "conv_bn_relu" else [*found, {"tile": "apart"}]


def tiles(text):
    """Launch configurations from the text of the library's conv_choices, whose lines are "<tile> <splits>" or "<tile>
    <splits> cluster"."""
    found = []
    for tile, splits, *cluster in map(str.split, text.splitlines()):
        found.append({"tile": tile, "splits": int(splits)} | ({"cluster": True} if cluster else {}))
    return found


_THEN_A_PASS = "cuDNN's convolution, then one fused pass (predicted, not measured)"  # noqa: S105 (over memory)


def torch_is_faster(convolution):
    """Why torch's convolution is the default, or None."""
    if convolution is None:
        return None
    channels = convolution.weight[0] // convolution.groups
    if convolution.groups > 1 and channels < TILE:
        return f"{channels} channels in each of {convolution.groups} groups: {_THEN_A_PASS}"
    if convolution.dtype == torch.float32 and not tf32_allowed():
        # IEEE float32 does not use tensor cores, for which the kernels are made.
        return f"IEEE float32: {_THEN_A_PASS}"
    return None


def _default(op, convolution: Convolution | None):
    if (why := torch_is_faster(convolution)) is not None:
        return False, why
    return True, "default on CUDA devices (predicted, not measured)"


BACKEND = Backend(
    "cuda",
    "cuda",
    why_not,
    kernels(library.namespace),
    configurations=functools.partial(configurations, library.namespace, "cuda"),
    default=_default,
    clusters=("conv_bn_relu",),
    proves=True,
)
