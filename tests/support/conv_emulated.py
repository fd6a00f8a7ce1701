"""The CUDA convolutions on the emulator: built by g++, called by ctypes on CPU tensors."""

import ctypes
import functools

import torch
from emulator import build

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MATHS = {
    "f16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "f32": (torch.float32, False),
}
LAST = torch.channels_last
TILES = {None: -1, "64x64": 0, "128x64": 1, "128x128": 2}
NAME_OF_TILE = {value: name for name, value in TILES.items()}
RESNET34 = [  # c, k, r, stride, input size
    (64, 64, 3, 1, 56), (64, 128, 3, 2, 56), (64, 128, 1, 2, 56), (128, 128, 3, 1, 28), (128, 256, 3, 2, 28),
    (128, 256, 1, 2, 28), (256, 256, 3, 1, 14), (256, 512, 3, 2, 14), (256, 512, 1, 2, 14), (512, 512, 3, 1, 7),
]  # fmt: skip


@functools.cache
def library():
    lib = ctypes.CDLL(str(build.c_library("conv_api", "conv/**/*.cu")))
    for name in ("conv_plan", "conv_pair_plan", "conv_bn_relu", "conv_bn_relu_pool", "conv_stats", "cluster_choices"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


INTEGERS = [
    *("dtype", "param_dtype", "n", "h", "w", "c", "k", "r", "s", "p", "q", "groups"),
    *("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
    *("activation", "allow_tf32", "aligned", "tile", "splits", "images", "cluster", "early_weights", "seed", "policy"),
]
POINTERS = ["x", "weight", "mean", "var", "bn_weight", "bn_bias", "residual", "out"]


class Call(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in POINTERS],
        *[(name, ctypes.c_int64) for name in INTEGERS],
        ("eps", ctypes.c_double),
    ]


class Plan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tile", "vector", "images", "tiles_m", "tiles_n", "steps")),
        *((name, ctypes.c_int64) for name in ("splits", "steps_per_split", "scratch", "clocks")),
    ]


def sizes(shape, weight_shape, stride=1, padding=0, dilation=1, groups=1):
    """The integers of ConvCall that describe a convolution."""
    n, c, h, w = shape
    k, c_group, r, s = weight_shape
    assert c == c_group * groups
    p = (h + 2 * padding - dilation * (r - 1) - 1) // stride + 1
    q = (w + 2 * padding - dilation * (s - 1) - 1) // stride + 1
    both = {
        f"{name}_{d}": v for name, v in [("stride", stride), ("pad", padding), ("dilation", dilation)] for d in "hw"
    }
    return {
        "n": n,
        "h": h,
        "w": w,
        "c": c_group,
        "k": k // groups,
        "r": r,
        "s": s,
        "p": p,
        "q": q,
        "groups": groups,
        **both,
    }


def run(name, call, *more):
    error = getattr(library(), name)(ctypes.byref(call), *more)
    if error is not None:
        raise RuntimeError(error.decode())


def plan(dtype, conv, allow_tf32=False, aligned=True, tile=None, splits=0):
    call = Call(dtype=DTYPES[dtype], allow_tf32=allow_tf32, aligned=aligned, tile=TILES[tile], splits=splits, **conv)
    result = Plan()
    run("conv_plan", call, ctypes.byref(result))
    return result


def cluster_shares(live, size):
    """[(first, end)] of the rows that each block of a cluster finishes."""
    to = (ctypes.c_int64 * (2 * size))()
    library().cluster_shares(ctypes.c_int64(live), ctypes.c_int64(size), to)
    return list(zip(to[::2], to[1::2], strict=True))


def cluster_choices(dtype, conv, allow_tf32=False):
    """[(tile, splits, predicted clocks)] of the clusters worth a measurement."""
    tiles, splits, clocks, count = (
        (ctypes.c_int64 * 16)(),
        (ctypes.c_int64 * 16)(),
        (ctypes.c_double * 16)(),
        ctypes.c_int64(),
    )
    run("cluster_choices", Call(dtype=DTYPES[dtype], allow_tf32=allow_tf32, aligned=True, **conv),
        tiles, splits, clocks, ctypes.byref(count))  # fmt: skip
    return [(NAME_OF_TILE[tiles[i]], splits[i], clocks[i]) for i in range(count.value)]


class PairPlan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("together", "tile", "splits")),
        *((name, ctypes.c_double) for name in ("clocks", "clocks_apart")),
    ]


def pair_plan(dtype, conv, projection, allow_tf32=False, aligned=True):
    calls = [Call(dtype=DTYPES[dtype], allow_tf32=allow_tf32, aligned=aligned, **c) for c in (conv, projection)]
    result = PairPlan()
    run("conv_pair_plan", calls[0], ctypes.byref(calls[1]), ctypes.byref(result))
    return result


def convolve(name, x, weight, norm, residual, out, conv, eps, *, more=(), relu=True, allow_tf32=False, tile=-1,
             splits=0, images=0, cluster=False, early_weights=False, seed=0, policy=-1):  # fmt: skip
    """norm: mean, var, weight, bias (the last two may be None), all of one dtype. `more`: arguments of conv_stats."""
    tensors = [x, weight, *norm, residual, out]
    pointers = {name: None if t is None else t.data_ptr() for name, t in zip(POINTERS, tensors, strict=True)}
    aligned = all(t is None or t.data_ptr() % 16 == 0 for t in (x, weight, residual, out))
    params = next((t.dtype for t in norm if t is not None), torch.float32)
    call = Call(dtype=DTYPES[x.dtype], param_dtype=DTYPES[params], eps=eps, activation=int(relu), allow_tf32=allow_tf32,
                aligned=aligned, tile=tile, splits=splits, images=images, cluster=cluster,
                early_weights=early_weights, seed=seed, policy=policy,
                **pointers, **conv)  # fmt: skip
    run(name, call, *more)


def table(batches=(1, 32, 256)):
    """The plans of ResNet-34 as docs/design/implicit-gemm.md shows them: python tests/support/conv_emulated.py"""
    print("| c, k, kernel, stride, size | " + " | ".join(f"batch {n}" for n in batches) + " |")
    print("|---|" + "---|" * len(batches))
    for layer in RESNET34:
        c, k, r, stride, size = layer
        cells = []
        for batch in batches:
            conv = sizes((batch, c, size, size), (k, c, r, r), stride, r // 2)
            p = plan(torch.bfloat16, conv)
            waves = p.tiles_m * p.tiles_n * p.splits / 132
            share = batch * conv["p"] * conv["q"] * k * c * r * r / (p.clocks * 132 * 2048)
            split = f" / {p.splits}" if p.splits > 1 else ""
            cells.append(f"{NAME_OF_TILE[p.tile]}{split}, {waves:.2f}, {share:.0%}")
        print(f"| {c}, {k}, {r}x{r}, {stride}, {size} | " + " | ".join(cells) + " |")


def pair_table(batches=(1, 32, 256)):
    """Clocks of a block's first convolution and its projection in one launch / in two (docs/design/implicit-gemm.md)."""
    print("| c, k, size | " + " | ".join(f"batch {n}" for n in batches) + " |")
    print("|---|" + "---|" * len(batches))
    for c, size in ((64, 56), (128, 28), (256, 14)):
        cells = []
        for n in batches:
            conv = sizes((n, c, size, size), (2 * c, c, 3, 3), 2, 1)
            p = pair_plan(torch.bfloat16, conv, sizes((n, c, size, size), (2 * c, c, 1, 1), 2))
            cells.append(f"{p.clocks / 1e3:.1f}k / {p.clocks_apart / 1e3:.1f}k" + ("" if p.together else ": two"))
        print(f"| {c}, {2 * c}, {size} | " + " | ".join(cells) + " |")


def cluster_table(batches=(1, 8)):
    """Clocks in two kernels / in a cluster, as docs/design/implicit-gemm.md shows them."""
    print("| c, k, kernel, stride, size | " + " | ".join(f"batch {n}" for n in batches) + " |")
    print("|---|" + "---|" * len(batches))
    for c, k, r, stride, size in RESNET34:
        cells = []
        for n in batches:
            conv = sizes((n, c, size, size), (k, c, r, r), stride, r // 2)
            p, found = plan(torch.bfloat16, conv), cluster_choices(torch.bfloat16, conv)
            split = f" / {p.splits}" if p.splits > 1 else ""
            cell = f"{NAME_OF_TILE[p.tile]}{split} {p.clocks / 1e3:.1f}k"
            cells.append(cell + (f"; {found[0][0]} / {found[0][1]} {found[0][2] / 1e3:.1f}k" if found else "; none"))
        print(f"| {c}, {k}, {r}x{r}, {stride}, {size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    table()
    pair_table()
    cluster_table()
