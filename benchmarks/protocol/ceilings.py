"""What this device can do at most, measured in the run whose times are compared with it; never taken from a data sheet."""

import torch

from resnet_fused.measure import timing


def measure(device, dtype, seconds=1.0, small=False):
    """{"flops": FLOP/s of a large matrix product in `dtype`, "bytes": bytes/s of a device copy}.

    `small`: sizes for a smoke test. Random normal values: zeros draw less power and run faster.
    """
    size = 256 if small else 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    length = (1 << 20) if small else (1 << 28) if device == "cuda" else (1 << 26)
    source = torch.randn(length, device=device)
    target = torch.empty_like(source)
    timings = timing.compare(
        {
            "matmul": timing.Candidate(lambda: a @ b),
            "copy": timing.Candidate(lambda: target.copy_(source)),
        },
        seconds=seconds, device=device,
    )  # fmt: skip
    return {
        "flops": 2 * size**3 / timings["matmul"].median,
        "bytes": 2 * source.nbytes / timings["copy"].median,
        "matmul_size": size,
        "copy_bytes": source.nbytes,
    }


def share(ceilings, flops, nbytes, seconds):
    """The roofline's time, as a share of `seconds`: the longer one of computing, and of moving each tensor once."""
    return max(flops / ceilings["flops"], nbytes / ceilings["bytes"]) / seconds
