"""How many Triton kernels a ResNet-34 would compile: with the real binder, for GPUs that are not there, on meta tensors.

    python tests/support/compilations.py 80 90      prints {"80": {"what runs": [kernels compiled for the first time]}}

The hook that Triton calls before a compilation counts its keys and refuses, so that nothing is compiled.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import aot_triton
import torch
import triton

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.ops import define


def take_meta_for_a_gpu():
    """The ops run on meta tensors as on a GPU without the compiled library."""
    original, autocast = define.why_not, torch.is_autocast_enabled

    def why_not(x):
        return None if x.device.type == "meta" else original(x)

    for module in [m for name, m in sys.modules.items() if name.startswith("resnet_fused")]:
        for name in [name for name, value in vars(module).items() if value is original]:
            setattr(module, name, why_not)
    torch.is_autocast_enabled = lambda *device: device != ("meta",) and autocast(*device)
    dispatch.BACKENDS["triton"] = dispatch.BACKENDS["triton"]._replace(
        device="meta", why_not=lambda device: None, proves=False
    )


def tensor(n):
    return aot_triton.tensor((n, 3, 224, 224), torch.float16)


def forward(model, n):
    with torch.no_grad():
        model.eval()(tensor(n))


def step(model, n):
    model.train()(tensor(n)).float().sum().backward()


RUNS = {
    "forward": (forward, 256),
    "step": (step, 256),
    "forward of another batch": (forward, 192),
    "step of another batch": (step, 192),
    "step of an odd last batch": (step, 113),
}


def compilations(arch):
    known, new = set(), []

    def count(*, key, fn, **_):
        if (kernel := (fn.name, key)) not in known:
            known.add(kernel)
            new.append(fn.name.split(".")[-1])
        return True  # do not compile

    found = {}
    triton.knobs.runtime.jit_cache_hook = count
    with torch.device("meta"):
        model = resnet_fused.resnet34().to(dtype=torch.float16, memory_format=torch.channels_last)
    with aot_triton.compile_only(arch), dispatch.record() as rows:
        for name, (run, n) in RUNS.items():
            new.clear()
            run(model, n)
            found[name] = sorted(new)
    assert {choice.backend for _, _, choice in rows} == {"triton"}, rows
    return found


if __name__ == "__main__":
    take_meta_for_a_gpu()
    print(json.dumps({arch: compilations(int(arch)) for arch in sys.argv[1:]}))
