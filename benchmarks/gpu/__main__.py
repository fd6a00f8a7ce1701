"""make gpu: checks and measures everything on a machine with a GPU, offline, in one command.

Every part is a process with a time box of its own: a part that hangs or crashes costs its box and nothing else, and what it
measured before is in the files already. Writes gpu.json (what ran, how it ended), gpu.log, the results of the benchmarks and
report.md. `--device cpu --smoke` runs the same in a miniature, in the tests.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .. import report
from ..protocol import options, record
from ..rows import newest
from . import parts

TOTAL = {False: 530.0, True: 170.0}  # seconds, by `quick`
LAST_LINES = 12


def run(chosen, output, total, say):
    """Runs the parts stage by stage and returns their records; gpu.json is complete after every part."""
    start, records = time.monotonic(), []
    for stage in sorted({part.stage for part in chosen}):
        running = []
        for part in (p for p in chosen if p.stage == stage):
            left = total - (time.monotonic() - start)
            if part.lacks or left < 5:
                records.append({"part": part.name, "state": "skipped", "why": part.lacks or "out of time"})
            else:
                running.append(_Running(part, min(part.box, left), output))
        while running:
            time.sleep(0.05)
            for one in [r for r in running if r.ended()]:
                running.remove(one)
                records.append(one.record())
                say(f"{records[-1]['part']:<28} {records[-1]['state']:<8} {records[-1]['seconds']:6.1f} s")
                _write(output, records, time.monotonic() - start)
    _write(output, records, time.monotonic() - start)
    return records


class _Running:
    def __init__(self, part, box, output):
        self.part, self.box, self.log = part, box, Path(output) / "gpu.log"
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(part.environment)
        # A process group of its own: stopping it stops its compilers as well.
        self.process = subprocess.Popen(
            part.command, cwd=parts.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        os.set_blocking(self.process.stdout.fileno(), False)
        self.start, self.text, self.stopped = time.monotonic(), "", False

    def ended(self):
        self._read()
        if self.process.poll() is None and time.monotonic() - self.start > self.box:
            self.stopped = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return self.process.poll() is not None

    def _read(self):
        try:
            while block := os.read(self.process.stdout.fileno(), 1 << 16):
                self.text += block.decode(errors="replace")
        except BlockingIOError:
            return  # nothing more for now

    def record(self):
        self._read()
        seconds, status = time.monotonic() - self.start, self.process.returncode
        with open(self.log, "a") as f:
            f.write(f"=== {self.part.name}: {' '.join(self.part.command)}\n{self.text}\n")
        state = "cut" if self.stopped else "passed" if status == 0 else "FAILED"
        return {"part": self.part.name, "state": state, "status": status, "seconds": round(seconds, 1),
                "last": self.text.strip().splitlines()[-LAST_LINES:]}  # fmt: skip


def _write(output, records, seconds):
    path = Path(output) / "gpu.json"
    text = json.dumps({"seconds": round(seconds, 1), "parts": records}, indent=1)
    path.with_suffix(".tmp").write_text(text + "\n")
    path.with_suffix(".tmp").replace(path)


def _report(output):
    """Tables of everything in the folder; none where only checks ran."""
    latest = list(newest(record.read(output)).values())
    text = [report.models(latest), report.kernels(latest), report.steering(latest)]
    if any(text):
        (Path(output) / "report.md").write_text("\n\n".join(filter(None, text)) + "\n")


def main(argv=None):
    made = options.Parser(prog="make gpu", description=__doc__.splitlines()[0])
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    made.add_argument("--quick", action="store_true", help="under 3 minutes instead of 9")
    made.add_argument("--smoke", action="store_true", help="a miniature, for the tests")
    made.add_argument("--parts", nargs="+", metavar="NAME", help="only parts whose name starts so")
    made.add_argument("--output", help="folder of the results; default: benchmarks/results")
    args = made.parse_args(argv)
    if args.device == "cpu" and not args.smoke:
        raise options.UsageError("--device cpu: only with --smoke; python -m benchmarks.resnet measures on a CPU")
    options.device_of(argparse.Namespace(device=args.device, threads=None))
    if args.device == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"  # Triton's kernels are compiled, whatever the environment says
    output = Path(args.output or parts.ROOT / "benchmarks" / "results").resolve()
    output.mkdir(parents=True, exist_ok=True)
    os.environ["RESNET_FUSED_CACHE"] = str(output / "tuning")  # nothing known beforehand; what is measured comes back
    # One cache of compiled kernels for all parts, also where the home folder cannot be written; a folder that was filled
    # ahead of time (benchmarks/gpu/warm.py) may be copied there.
    os.environ.setdefault("TRITON_CACHE_DIR", str(parts.ROOT / "build" / "triton"))
    chosen = parts.of(args.device, output, args.quick, args.smoke)
    if args.parts:
        chosen = [part for part in chosen if part.name.startswith(tuple(args.parts))]
    if not chosen:
        raise options.UsageError(f"--parts: no part starts with {args.parts[0]!r}")
    records = run(chosen, str(output), TOTAL[args.quick], lambda text: print(text, flush=True))
    _report(output)
    print(f"results in {output}")
    return 1 if any(r["state"] == "FAILED" for r in records) else 0


if __name__ == "__main__":
    sys.exit(options.run(main, None))
