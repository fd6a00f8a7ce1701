"""Which kernels may run on a device: what the check found there, kept in a file of the cache folder (RESNET_FUSED_CACHE).

There is one file for each model of device, driver, build of the library, torch, Triton and text of the kernels. The first
question about a device runs the check: the kernels of the compiled library all together, those that are compiled
meanwhile (Triton's) family by family. Processes that ask at the same time wait for the first.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import re
import sys
import threading
import time
from pathlib import Path

import torch
from torch.fx._symbolic_trace import is_fx_tracing

from ...kernels import env, gpu
from .. import files, machine
from . import families as all_families
from . import run

VERSION = 1
MODES = ("check", "always", "never")
BY_HAND = "`python -m resnet_fused check` checks it"
_known, _lock = {}, threading.RLock()


def why_not(backend, family, device):
    """Why `backend` must not run a family on a torch.device, or None. May run the check."""
    found = _known.get((backend.name, family, device), _known)
    return found if found is not _known else _find_out(backend, family, device)


def forget():
    """Reads the file again at the next question."""
    _known.clear()


def known(backend, device):
    """{family: why it is refused, or None} of what was found for `backend` on a torch.device; checks nothing."""
    device = gpu.numbered(device)
    if env.TRUST != "check":
        return {}
    kept = Record(device).read()
    every = all_families.families(backend, device)
    return {family.name: kept[key] for family in every if (key := _key(family)) in kept}


def _find_out(backend, name, device):
    if env.TRUST not in MODES:
        raise ValueError(f"RESNET_FUSED_TRUST must be one of {', '.join(MODES)}, not {env.TRUST!r}")
    device, key = gpu.numbered(device), (backend.name, name, device)
    if env.TRUST != "check":
        return _known.setdefault(key, None if env.TRUST == "always" else "RESNET_FUSED_TRUST=never")
    with _lock:
        if key in _known:
            return _known[key]
        if backend.kernels.get(name.split(" ")[0]) is None:  # composed of other ops
            return _known.setdefault(key, None)
        record, family = Record(device), all_families.family(backend, name)
        kept = record.read()
        if _key(family) in kept:
            return _known.setdefault(key, _refusal(kept[_key(family)]))
        if (why := _why_not_now(device)) is not None:
            return f"{backend.name} was not checked on this device yet, which cannot be done inside {why}: {BY_HAND}"
        wanted = [] if backend.compiles else _of_the_library(device)
        wanted += [family] * (family not in wanted)
        found = record.check(wanted, family)
        for one in wanted:
            if _key(one) in found:  # another process, that of another version of the table, may have checked fewer
                _known[one.backend, one.name, device] = _refusal(found[_key(one)])
        return _known[key]


def _refusal(why):
    return why and f"refused on this device: {why}"


def _of_the_library(device):
    """The Families of all kernels that must be proven and are compiled already."""
    return [
        family
        for backend in all_families.own(device)
        if backend.proves and not backend.compiles
        for family in all_families.families(backend, device)
    ]


def _why_not_now(device):
    """What is going on in which no other process may be waited for, or None."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return "torch.compile or torch.export"
    if is_fx_tracing():
        return "a trace (make_fx)"
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "the capture of a CUDA graph"
    return None


class Record:
    """The file of one kind of device."""

    def __init__(self, device):
        self.device, self.folder = device, Path(env.CACHE)

    @functools.cached_property
    def facts(self):
        return machine.identity(self.device) | {"driver": _driver(self.device), "kernels": _text_of_kernels()}

    @functools.cached_property
    def path(self):
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"trust-v{VERSION}-{digest}.json"

    def read(self):
        """{key: why it is refused, or None}; a file that cannot be read has nothing."""
        try:
            found = json.loads(self.path.read_text())
            return found["families"] if (found["version"], found["machine"]) == (VERSION, self.facts) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @contextlib.contextmanager
    def locked(self):
        """Context manager: one process at a time. Raises OSError where the folder cannot be written."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.locked(self.path.with_suffix(".lock")):
            yield

    def store(self, found):
        """Adds {Family: Verdict} of those that ran. To be called inside of `locked`."""
        kept = self.read() | {_key(family): verdict.why for family, verdict in found.items() if verdict.ran}
        files.replace(self.path, {"version": VERSION, "machine": self.facts, "families": kept})

    def check(self, wanted, family):
        """{key: why it is refused, or None} of all `wanted`: what a check finds, unless another process has found `family`
        while this one waited."""
        try:
            with self.locked():
                kept = self.read()
                if _key(family) in kept:
                    return kept
                found = _in_a_line(self.device, wanted)
                self.store(found)
                return kept | {_key(one): verdict.why for one, verdict in found.items()}
        except OSError as error:
            why = f"what a check finds cannot be kept in {self.folder}, {error.strerror} (RESNET_FUSED_CACHE names another)"
            return {_key(one): why for one in wanted}


def checked(device, wanted):
    """Yields (Family, Verdict) of all `wanted`, as they come."""
    for compiles, seconds in ((False, run.SECONDS), (True, run.COMPILER_SECONDS)):
        yield from run.verdicts(device, [family for family in wanted if family.compiles is compiles], seconds)


def _in_a_line(device, wanted):
    """{Family: Verdict}, and a line on stderr that says what is done, what comes of it and how long it took."""
    what = f"{wanted[0].backend} {wanted[0].name}" if len(wanted) == 1 else f"{len(wanted)} kinds of kernels"
    begin = f"resnet_fused: checks {what} on {machine.identity(device)['device']}, once for this driver and build ... "
    print(begin, end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    found = dict(checked(device, wanted))
    refused = sum(verdict.why is not None for verdict in found.values())
    result = f"{refused} refused (`python -m resnet_fused check` says why)" if refused else "all right"
    print(f"{result}, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return found


def _key(family):
    """The key in a file. Kernels of another package's module are known by its text as well."""
    if not family.module:
        return f"{family.backend} {family.name}"
    text = Path(importlib.util.find_spec(family.module).origin).read_bytes()
    return f"{family.backend} {family.name} {hashlib.sha256(text).hexdigest()[:12]}"


@functools.cache
def _text_of_kernels():
    """A hash of the sources in Python: launchers, Triton's kernels, and the cases by which they are checked."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parents[2]
    for path in sorted([*package.glob("kernels/**/*.py"), *package.glob("measure/trust/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _driver(device):
    if device.type != "cuda":
        return "none"
    try:
        found = re.search(r"\d+\.\d[\d.]*", Path("/proc/driver/nvidia/version").read_text())
    except OSError:  # WSL has no such file
        found = None
    return f"{torch._C._cuda_getDriverVersion()}" + (f" {found[0]}" if found else "")
