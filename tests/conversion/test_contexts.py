"""A forward that runs a part of itself in another context of torch is not converted: no program has such parts."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from foreign import Plain, lively, timm_net, tv_net
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import resnet_fused
from resnet_fused import convert
from resnet_fused.conversion import contexts
from resnet_fused.conversion.convert import is_converted


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


hooks = torch.autograd.graph
CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast-off": lambda: torch.autocast("cpu", enabled=False),
    "autocast-off-on-a-gpu": lambda: torch.autocast("cuda", enabled=False),
    "autocast-in-float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "no-grad": torch.no_grad,
    "enable-grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "no-inference": lambda: torch.inference_mode(False),
    "save-on-cpu": hooks.save_on_cpu,
    "saved-tensors": lambda: hooks.saved_tensors_hooks(lambda t: t, lambda t: t),
    "no-saved-tensors": lambda: hooks.disable_saved_tensors_hooks("not here"),
    "deterministic": deterministic,
    "onednn-off": lambda: torch.backends.mkldnn.flags(enabled=False),
    "onednn-on": lambda: torch.backends.mkldnn.flags(enabled=True),
    "cudnn-off": lambda: torch.backends.cudnn.flags(enabled=False, benchmark=None, deterministic=None),
    "function-mode": Functions,
    "dispatch-mode": Dispatched,
    "device": lambda: torch.device("cpu"),
    "default-dtype": default_dtype,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "profiled": lambda: torch.profiler.record_function("block"),
}


class Inside(Plain):
    def __init__(self, context):
        super().__init__()
        self.context = context

    def forward(self, x):
        with self.context():
            out = F.relu(self.norm_a(self.first(x)))
        return F.relu(self.norm_b(self.second(out)) + x)


class Reentrant(Plain):
    reentrant = True

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


class NotReentrant(Reentrant):
    reentrant = False


class Decorated(Plain):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class AskingForAutocast(Plain):
    def forward(self, x):
        return super().forward(x.float() if torch.is_autocast_enabled("cpu") else x)


FORWARDS = {name: lambda context=context: Inside(context) for name, context in CONTEXTS.items()}
FORWARDS |= {cls.__name__: cls for cls in (Reentrant, NotReentrant, Decorated, AskingForAutocast)}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_context_inside_a_forward_is_refused(name):
    module, before = nn.Sequential(FORWARDS[name]()), contexts.state()
    with pytest.raises(RuntimeError, match=r"0 \(\w+\): its forward (changes .* for a part|calls|depends on the mode)"):
        convert(module, strict=True)
    assert not is_converted(convert(module)[0]) and contexts.state() == before


def test_a_context_around_a_converted_block_is_the_callers():
    block, x = convert(lively(Plain), strict=True), torch.randn(2, 8, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert block(x).is_inference()


def kept(model, x):
    """(bytes that a training step keeps for its backward, running statistics after it)"""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(x)
    out.square().mean().backward()
    return sum(sizes), [b for name, b in model.named_buffers() if "layer" in name]


@pytest.mark.parametrize("first", ["convert", "checkpoint"])
def test_timms_checkpoints(first):
    """They hold before and after a conversion, with eager's bytes and statistics, and end when they are switched off."""
    eager, model, x = lively(timm_net).train(), lively(timm_net).train(), torch.randn(2, 3, 64, 64)
    eager.set_grad_checkpointing(True)
    if first == "convert":
        convert(model, strict=True)
    model.set_grad_checkpointing(True)
    convert(model)
    (ours, statistics), (expected, reference) = kept(model, x), kept(eager, x)
    assert ours <= expected
    for a, b in zip(statistics, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert model.layer1[0].bn1.num_batches_tracked == 2 and is_converted(model.layer1[0])
    model.set_grad_checkpointing(False)
    convert(model, strict=True)
    assert model.why_not_fused(x) is None and kept(model, x)[0] > expected


def test_a_checkpoint_that_is_switched_on_is_a_reason():
    model, x = convert(timm_net(), strict=True).eval(), torch.randn(1, 3, 64, 64)
    model.set_grad_checkpointing(True)
    reason = "grad_checkpointing is True, and was False when the module was converted"
    assert model.why_not_fused(x) == reason
    assert reason in {row["reason"] for row in resnet_fused.explain(model, x).rows}
    model.set_grad_checkpointing(False)
    assert model.why_not_fused(x) is None


def test_a_conversion_leaves_the_settings_of_torch(monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            before = contexts.state()
            convert(tv_net(), strict=True)
            assert contexts.state() == before and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
