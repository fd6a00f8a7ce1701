"""Runs checks in several processes over gloo on this machine: one start for all of them, since importing torch takes longer.

python tests/support/distributed_run.py <folder> <world size> [check ...]
"""

import datetime
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent


def results(folder, processes, checks=()):
    """{check: None, or what went wrong in some process}"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RESNET_FUSED_STRICT": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "distributed_run.py"), str(folder), str(processes)]
    running = [
        subprocess.Popen(
            [*command, str(rank), *checks], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(processes)
    ]
    try:
        texts = [p.communicate(timeout=300)[0].decode() for p in running]
    finally:
        for p in running:
            p.kill()
    found = {}
    for rank in range(processes):
        file = Path(folder) / f"{rank}.json"
        if not file.exists():
            raise RuntimeError(f"process {rank} did not start:\n{texts[rank]}")
        for check, error in json.loads(file.read_text()).items():
            found[check] = found.get(check) or (error and f"process {rank}: {error}")
    return found


def main(folder, processes, rank, *names):
    import torch.distributed as dist
    from distributed_checks import CHECKS

    # A file, not a port: nothing else on the machine can have taken it.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(processes),
        timeout=datetime.timedelta(seconds=300),
    )  # fmt: skip
    found = dict.fromkeys(names or CHECKS, "not run: a check before it failed")
    for name in found:
        try:
            CHECKS[name]()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        if found[name] is not None:
            os._exit(1)  # the others may stand in a collective: nothing that waits for them
        dist.barrier()
    os._exit(0)  # destroying the group can hang: resnet_fused/commands/train/group.py


if __name__ == "__main__":
    main(*sys.argv[1:])
