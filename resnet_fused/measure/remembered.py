"""Measured choices: which backend was fastest for an op on tensors of one shape, kept in RESNET_FUSED_CACHE.

There is one JSON file per machine (device, architecture, torch, Triton, library build; threads on a CPU) and format version:
a time from another machine or build is never applied. The package may ship tables of its own, which hold for their device and
architecture and give way to what is measured here. Looking an entry up measures nothing. What was measured under load is
measured again by the next process that needs it, until a measurement is quiet.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import math
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from ..kernels import env
from . import files, machine, timing

VERSION = 1
SHIPPED = Path(__file__).with_name("data")


class Entry(NamedTuple):
    """`choice`: the fastest of `seconds` {name: seconds per call, infinite for what must not run}; `config`: {name: launch
    configuration}, where one other than the default was measured for it; `ranking`: the two fastest ways to run it, with
    their configurations in their names, where configurations were measured. `spread`, `load`: as in timing.Times, where
    they were noted."""

    choice: str
    seconds: dict
    config: dict
    when: str = ""
    ranking: dict | None = None
    spread: dict | None = None
    load: float = 0.0

    @property
    def disturbed(self):
        """Whether threads waited for cores that another process had."""
        return self.load > timing.BUSY

    def reason(self):
        """Such as `measured: 11.2 us; triton: 13.0 us` or `measured: cuda 128x64 splits=2 11.2 us; cuda: 11.9 us`: the
        choice's time and the runner-up's."""
        others = {name: s for name, s in (self.ranking or self.seconds).items() if s < math.inf}
        best = min(self.ranking, key=self.ranking.get) if self.ranking else self.choice
        # A configuration is named; "measured: 11.2 us" says enough of the default one.
        named = f"{best} " if best != self.choice else ""
        took = duration(others.pop(best))
        runner_up = min(others, key=others.get, default=None)
        return f"measured: {named}{took}" + (f"; {runner_up}: {duration(others[runner_up])}" if runner_up else "")


def duration(seconds):
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


def entry(seconds, config=None, ranking=None, spread=None, load=0.0):
    """The Entry of measured times, made now."""
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Entry(min(seconds, key=seconds.get), dict(seconds), dict(config or {}), when, ranking, spread, load)


def key(op, *parts):
    """The text by which a table knows an op on tensors of one kind; `parts`: shapes, dtypes, numbers, None."""

    def text(part):
        if isinstance(part, (tuple, list)):
            return "x".join(map(text, part))
        return str(part).removeprefix("torch.")

    return " ".join([op, *map(text, parts)])


class Table:
    """The entries of one machine. `facts`: its `machine.identity`, or a function that returns it. An identity has a hash of the
    compiled library, so the function is called only when there is a file to read or to write."""

    def __init__(self, facts, folder=None):
        self._tell, self.folder, self.entries = facts, Path(folder or env.CACHE), {}
        self.stored = set()  # the keys that this process has measured
        pattern = f"tuning-v{VERSION}-*.json"
        if any(SHIPPED.glob("tuning-*.json")) or (self.folder.is_dir() and any(self.folder.glob(pattern))):
            found, problem = self._read()
            if problem:
                _warn(
                    f"tuning results in {self.path} cannot be read ({problem}): "
                    "the defaults apply until they are measured again"
                )
            self.entries = _shipped(self.facts["device"], self.facts["arch"]) | found

    @functools.cached_property
    def facts(self):
        return self._tell() if callable(self._tell) else self._tell

    @functools.cached_property
    def path(self):
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"tuning-v{VERSION}-{digest}.json"

    def _read(self):
        """({key: Entry} of the file, what is wrong with it or None)."""
        try:
            found = json.loads(self.path.read_text())
            if (found["version"], found["machine"]) != (VERSION, self.facts):
                raise ValueError("it belongs to another machine or version")
            return {k: Entry(**e) for k, e in found["entries"].items()}, None
        except (FileNotFoundError, NotADirectoryError):
            return {}, None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return {}, f"{type(error).__name__}: {error}"

    def store(self, entries):
        """Adds `entries` {key: Entry}. Entries that other processes wrote meanwhile stay. Where the folder cannot be written
        there is a warning, and only this process keeps the entries."""
        self.entries = self.entries | entries
        self.stored |= entries.keys()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.locked(self.path.with_suffix(".lock")):
                before, problem = self._read()
                if problem:  # the broken file stays beside the new one and can be looked into
                    self.path.replace(self.path.with_suffix(".corrupt"))
                files.replace(self.path, {
                    "version": VERSION,
                    "machine": self.facts,
                    "entries": {k: e._asdict() for k, e in sorted((before | entries).items())},
                })  # fmt: skip
        except OSError as error:
            _warn(f"tuning results cannot be kept in {self.folder} ({error}): they are lost when this process ends")


@functools.cache
def _shipped(device, arch):
    entries = {}
    for path in sorted(SHIPPED.glob("tuning-*.json")):
        found = json.loads(path.read_text())
        if found["version"] == VERSION and (found["machine"]["device"], found["machine"]["arch"]) == (device, arch):
            entries |= {k: Entry(**e) for k, e in found["entries"].items()}
    return entries


@functools.cache  # once for each message
def _warn(message):
    warnings.warn(message, stacklevel=2)


_tables, _lock = {}, threading.Lock()


def table(device):
    """The Table of a torch.device, read once per process."""
    which = (device.type, device.index, torch.get_num_threads() if device.type == "cpu" else 0)
    found = _tables.get(which)
    if found is None:
        with _lock:
            found = _tables.get(which) or _tables.setdefault(which, Table(lambda: machine.identity(device)))
    return found


@contextlib.contextmanager
def _set(name, value):
    before = _state[name]
    _state[name] = value
    try:
        yield
    finally:
        _state[name] = before


def ignored(on=True):
    """Context manager: inside it (`on`) freeze() finds no entry, measures again, and still stores what it measures."""
    return _set("ignored", on)


def given(entries):
    """Context manager: inside it freeze() finds `entries` {key: Entry} before those of this machine's table."""
    return _set("given", entries)


def remembered(device, text, names):
    """The Entry under the key `text` with the times of `names` alone; None where one of them was not measured, or where
    another process measured them under load."""
    if _state["ignored"]:
        return None
    found = _state["given"].get(text)
    if found is None:
        here = table(device)
        found = here.entries.get(text)
        if found is not None and found.disturbed and text not in here.stored:
            return None
    if found is None or not set(names) <= found.seconds.keys():
        return None
    seconds = {name: found.seconds[name] for name in names}
    return found._replace(choice=min(seconds, key=seconds.get), seconds=seconds, ranking=None)


def store(device, text, new):
    """Stores the Entry `new` under the key `text`, and returns what holds there: one made under less load stays, where `new`
    was made under load as well."""
    here = table(device)
    old = here.entries.get(text)
    if old is not None and new.seconds.keys() <= old.seconds.keys() and new.disturbed and old.load < new.load:
        new = old
    here.store({text: new})
    return new


_state = {"ignored": False, "given": {}}


def forget():
    """Reads every table again at its next use."""
    _tables.clear()
