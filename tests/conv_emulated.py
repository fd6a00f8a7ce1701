"""The CUDA convolutions on the emulator: built by g++, called by ctypes on CPU tensors."""

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SANITIZE = bool(os.environ.get("EMULATOR_SANITIZE"))
FLAGS = ["-std=c++17", "-DHOST_EMULATION", "-fPIC", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern", "-pthread"]
FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else ["-O2"]
INCLUDE = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "emulator")]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TILES = {None: -1, "64x64": 0, "128x64": 1, "128x128": 2}


def sources():
    emulator = ROOT / "tests" / "emulator"
    return [emulator / "machine.cpp", emulator / "shadow.cpp", emulator / "conv_api.cpp",
            *sorted((ROOT / "csrc" / "cuda").glob("conv_*.cu"))]  # fmt: skip


@functools.cache
def library():
    """Objects are kept by the hash of all they could include: a change of one kernel rebuilds in seconds."""
    text = hashlib.sha256(" ".join(FLAGS).encode())
    for pattern in ("csrc/*.h", "csrc/ptx/*", "csrc/cuda/*", "tests/emulator/*"):
        for path in sorted(ROOT.glob(pattern)):
            text.update(path.read_bytes())
    folder = Path(os.environ.get("EMULATOR_BUILD", ROOT / "build" / "conv_emulated"))
    built = folder / f"conv-{text.hexdigest()[:16]}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("conv-*.so"):
            stale.unlink()
        objects, jobs = [], []
        for source in sources():
            objects.append(folder / f"{source.stem}-{os.getpid()}.o")
            command = ["g++", *FLAGS, *INCLUDE, "-x", "c++", "-c", str(source), "-o", str(objects[-1])]
            jobs.append(subprocess.Popen(command))
            if len(jobs) % (os.cpu_count() or 1) == 0:
                jobs[-1].wait()
        if any(job.wait() for job in jobs):
            raise RuntimeError("g++ failed on the emulated kernels")
        partial = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["g++", *FLAGS, "-shared", *map(str, objects), "-o", str(partial)], check=True)
        partial.rename(built)
        for o in objects:
            o.unlink()
    lib = ctypes.CDLL(str(built))
    for name in ("conv_plan", "conv_bn_relu", "conv_bn_relu_pool"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


INTEGERS = ("dtype param_dtype n h w c k r s p q groups stride_h stride_w pad_h pad_w dilation_h dilation_w "
            "relu allow_tf32 aligned tile splits seed policy").split()  # fmt: skip
POINTERS = "x weight mean var bn_weight bn_bias residual out".split()


class Call(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in POINTERS],
        *[(name, ctypes.c_int64) for name in INTEGERS],
        ("eps", ctypes.c_double),
    ]


class Plan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in "tile vector images tiles_m tiles_n steps splits steps_per_split scratch".split()
    ]


def sizes(shape, weight_shape, stride=1, padding=0, dilation=1, groups=1):
    n, c, h, w = shape
    k, c_group, r, s = weight_shape
    assert c == c_group * groups
    p = (h + 2 * padding - dilation * (r - 1) - 1) // stride + 1
    q = (w + 2 * padding - dilation * (s - 1) - 1) // stride + 1
    return dict(n=n, h=h, w=w, c=c_group, k=k // groups, r=r, s=s, p=p, q=q, groups=groups, stride_h=stride,
                stride_w=stride, pad_h=padding, pad_w=padding, dilation_h=dilation, dilation_w=dilation)  # fmt: skip


def run(name, call, *more):
    error = getattr(library(), name)(ctypes.byref(call), *more)
    if error is not None:
        raise RuntimeError(error.decode())


def plan(dtype, conv, allow_tf32=False, aligned=True, tile=None, splits=0):
    call = Call(dtype=DTYPES[dtype], allow_tf32=allow_tf32, aligned=aligned, tile=TILES[tile], splits=splits, **conv)
    result = Plan()
    run("conv_plan", call, ctypes.byref(result))
    return result


def convolve(name, x, weight, norm, residual, out, conv, eps, relu=True, allow_tf32=False, tile=-1, splits=0, seed=0,
             policy=-1):  # fmt: skip
    """norm: mean, var, weight, bias (the last two may be None), all of one dtype."""
    tensors = [x, weight, *norm, residual, out]
    pointers = {name: None if t is None else t.data_ptr() for name, t in zip(POINTERS, tensors, strict=True)}
    aligned = all(t is None or t.data_ptr() % 16 == 0 for t in (x, weight, residual, out))
    run(name, Call(dtype=DTYPES[x.dtype], param_dtype=DTYPES[norm[0].dtype], eps=eps, relu=relu, allow_tf32=allow_tf32,
                   aligned=aligned, tile=tile, splits=splits, seed=seed, policy=policy, **pointers, **conv))  # fmt: skip
