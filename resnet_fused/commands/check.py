"""The check of the kernels by hand: every family on the device, now, whatever was found before."""

import time

import torch

from .. import dispatch
from ..kernels import gpu
from ..measure import machine
from ..measure.trust import families, verdicts
from ..reports import table

COLUMNS = {"backend": "backend", "family": "kernels", "calls": "calls", "seconds": "s", "verdict": ""}


class Report:
    """`rows`: one dict per family with the keys of COLUMNS; `notes`: sentences about the whole."""

    def __init__(self, device):
        self.device, self.rows, self.notes = device, [], []

    @property
    def passed(self):
        return all(row["verdict"] == "ok" for row in self.rows)

    def __str__(self):
        name = machine.identity(self.device)["device"]
        return "\n".join([f"{self.device}: {name}", table.render(COLUMNS, self.rows), *map(table.fit, self.notes)])


def devices(kind):
    """The torch.devices to check: the CPU, or one GPU of each kind."""
    if kind == "cpu":
        return [torch.device("cpu")]
    return list({verdicts.Record(device).path: device for device in reversed(gpu.devices())}.values())[::-1]


def check(device, step=lambda text: None):
    """The Report of a torch.device. What was found is kept, as that of the check at first use. `step`: called with a text
    before the check and after every family."""
    report, found, record = Report(device), {}, verdicts.Record(device)
    wanted = [family for backend in families.own(device) for family in families.families(backend, device)]
    step(f"{len(wanted)} kinds of kernels")
    start = time.perf_counter()
    for family, verdict in verdicts.checked(device, wanted):
        found[family], end = verdict, time.perf_counter()
        row = {
            "backend": family.backend,
            "family": family.name,
            "calls": verdict.calls,
            "seconds": f"{end - start:.1f}",
        }
        start = end
        if verdict.calls or verdict.why is not None:
            report.rows.append(row | {"verdict": "ok" if verdict.why is None else f"REFUSED: {verdict.why}"})
        step(f"{family.backend} {family.name}")
    for name, backend in dispatch.BACKENDS.items():
        if backend.takes(device.type) and (why := backend.why_not(device)) is not None:
            report.notes.append(f"{name} cannot run: {why}")
    try:
        with record.locked():
            record.store(found)
    except OSError as error:
        report.notes.append(f"this cannot be kept in {record.folder}: {error.strerror}")
    verdicts.forget()
    return report
