"""Runs families of kernels in processes of their own, and survives what they do: wrong numbers, errors, hangs, crashes."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

SECONDS = 20.0  # of a family
COMPILER_SECONDS = 300.0  # of a family whose kernels are compiled meanwhile
START_SECONDS = 120.0  # of a process until it begins: it imports torch and makes a CUDA context


class Verdict(NamedTuple):
    """`why`: why the family must not be used, or None. `calls`: how many were compared. `ran`: whether the family began;
    what stopped it before says nothing of its kernels."""

    why: str | None
    calls: int = 0
    ran: bool = True


def verdicts(device, families, seconds=SECONDS, start_seconds=START_SECONDS):
    """Yields (Family, Verdict) of every one of `families` on a torch.device, in order, as they come."""
    left = list(families)
    while left:
        for family, verdict in _of_one_process(device, tuple(left), seconds, start_seconds):
            left.remove(family)
            yield family, verdict


def _of_one_process(device, families, seconds, start_seconds):
    """Yields (Family, Verdict) of those that one process comes to, at least of the first."""
    request = {"device": str(device), "families": families, "seconds": seconds}
    # The modules of this process in their order, and nothing before them: Python would put its folder there.
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    try:
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed below)
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child"], cwd=os.path.abspath(os.sep), env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    except (OSError, TypeError) as error:  # the latter: a program that embeds Python has no sys.executable
        yield from _none_ran(families, f"no process can be started to check it ({error})")
        return
    with errors:
        try:
            yield from _conversation(process, request, errors, families, seconds, start_seconds)
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that a driver holds does not end
                process.wait(10)


def _conversation(process, request, errors, families, seconds, start_seconds):
    lines = queue.Queue()
    threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # it has died already, and the lines end
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.close()
    ended, running = 0, False
    while True:
        try:
            line = lines.get(timeout=seconds if running else start_seconds)
        except queue.Empty:
            if running:
                yield families[ended], Verdict(f"no end within {seconds:g} s")
            else:
                yield from _none_ran(families[ended:], f"no begin of the check within {start_seconds:g} s")
            return
        if line is None:
            how = _end_of(process, errors)
            if running:
                yield families[ended], Verdict(f"the process that checked it died: {how}")
            elif ended == 0:
                yield from _none_ran(families, f"the process that checks it failed: {how}")
            return
        answer = json.loads(line)
        running = "begins" in answer
        if not answer.get("ran", True):
            yield from _none_ran(families[ended:], answer["why"])
            return
        if not running:
            yield families[ended], Verdict(answer["why"], answer["calls"])
            ended += 1


def _none_ran(families, why):
    return [(family, Verdict(why, 0, False)) for family in families]


def _pump(stream, lines):
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end_of(process, errors):
    """How a process ended, with its last words."""
    status = process.wait(START_SECONDS)
    errors.seek(0)
    words = [line.strip() for line in errors if line.strip()]
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"{how}, {words[-1]}" if words else how
