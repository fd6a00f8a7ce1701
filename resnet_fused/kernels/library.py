"""Finds and loads the compiled library (csrc/), and says why it is absent.

Importing this module loads nothing. The library has private ops that only launch kernels
(torch.ops.resnet_fused_native.<op>). setup.py builds it as one file for torch 2.11 and later and for every Python.
"""

import functools
import importlib.metadata
import json
import shlex
import warnings
from pathlib import Path

import torch

from ..version import ABI, __version__

LIBRARY = Path(__file__).parent.with_name("_native.so")
RECORD = Path(__file__).parent.with_name("_native_build.json")


@functools.cache
def why_absent():
    """None if the library is loaded, else the reason in one line. The first call loads the library."""
    if not LIBRARY.exists():
        return f"the compiled library was not built: {_why_not_built()}"
    try:
        torch.ops.load_library(LIBRARY)
        info = json.loads(torch.ops.resnet_fused_native.build_info())
    except (OSError, AttributeError, RuntimeError) as error:
        return _warned(
            f"the compiled library, built for torch {_record().get('stable_abi', 'of unknown version')} and later, "
            f"does not load in torch {torch.__version__}: {str(error).splitlines()[0]}"
        )
    if (info["version"], info["abi"]) != (__version__, ABI):
        return _warned(
            f"the compiled library is stale: built for version {info['version']} (ABI {info['abi']}), "
            f"this is {__version__} (ABI {ABI}); build it again"
        )
    return None


def warn_of_absence():
    """Warns, when the package is imported, of what installing could not build; pip does not show what the build said.

    A library that was not asked for (RESNET_FUSED_BUILD=0) is not missed. Loads nothing.
    """
    record = _record()
    if not LIBRARY.exists() and record.get("not_built") != "RESNET_FUSED_BUILD=0":
        _warned(f"the compiled library was not built: {_why_not_built()}")
    elif record.get("cuda_failed"):
        _warned(f"the CUDA kernels were not built: {record['without_cuda']}")


def _warned(why):
    warnings.warn(f"resnet_fused: {why}. Slower kernels run instead. To build it: {_remedy()}", stacklevel=3)
    return why


def _remedy():
    """The command that builds the library again."""
    source = LIBRARY.parents[1]
    if (source / "setup.py").is_file():
        return f"cd {shlex.quote(str(source))} && python setup.py build_ext --inplace"
    try:
        origin = json.loads(importlib.metadata.distribution("resnet_fused").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        origin = {}
    what = f"{origin['vcs_info']['vcs']}+{origin['url']}" if "vcs_info" in origin else origin.get("url", "resnet_fused")
    return f"pip install --force-reinstall --no-deps --no-cache-dir {shlex.quote(what)}"


def namespace():
    """torch.ops.resnet_fused_native. Raises RuntimeError where the library is absent."""
    if (why := why_absent()) is not None:
        raise RuntimeError(why)
    return torch.ops.resnet_fused_native


def build_info():
    """Facts about the loaded library: version, abi, torch, stable_abi, compiler, cuda, architectures."""
    return json.loads(namespace().build_info())


@functools.cache
def has_cuda():
    """Whether the library is present and has CUDA kernels. This needs no GPU."""
    return why_absent() is None and build_info()["cuda"] is not None


def cpu_isa():
    """The instruction set that the CPU kernels use on this machine, one of env.INSTRUCTION_SETS."""
    return namespace().cpu_isa()


def _record():
    try:
        return json.loads(RECORD.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _why_not_built():
    return _record().get("not_built", "`python setup.py build_ext --inplace` never ran here")
