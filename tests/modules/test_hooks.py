"""Hooks of every kind on every submodule see what eager shows them, in our networks and in converted ones."""

import copy

import pytest
import torch
from foreign import fused_and_eager
from torch import nn

from resnet_fused import dispatch

X = (2, 3, 32, 32)
BLOCKS = {
    ("ours", "BasicBlock"): ["conv1", "bn1", "relu", "conv2", "bn2", "downsample", "downsample.0", "downsample.1"],
    ("ours", "Bottleneck"): ["conv2", "bn2", "relu", "conv3", "bn3", "downsample", "downsample.0"],
    ("timm", "BasicBlock"): ["conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "act2", "downsample.1"],
}
SITES = [(*holder, f"layer2.0.{part}") for holder, parts in BLOCKS.items() for part in parts]
SITES += [("ours", "BasicBlock", part) for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2.0", "fc", "")]
SITES += [("torchvision", "BasicBlock", part) for part in ("conv1", "relu", "layer1.0.relu", "layer2.0.bn2")]
KINDS = [
    "forward", "forward with kwargs", "forward that replaces", "forward pre", "forward pre that replaces",
    "full backward", "full backward pre",
]  # fmt: skip


def copies(values):
    """Hooks see tensors that are overwritten in place later, so they keep copies."""
    return [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in values]


def watch(model, path, kind):
    """Registers a hook of `kind` and returns the list of what it sees."""
    module, seen = model.get_submodule(path), []
    if kind == "forward":
        module.register_forward_hook(lambda m, args, out: seen.append(copies([*args, out])))
    elif kind == "forward with kwargs":
        module.register_forward_hook(lambda m, args, kwargs, out: seen.append(copies([*args, out])), with_kwargs=True)
    elif kind == "forward that replaces":
        module.register_forward_hook(lambda m, args, out: seen.append(copies([out])) or out * 1.5)
    elif kind == "forward pre":
        module.register_forward_pre_hook(lambda m, args: seen.append(copies(args)))
    elif kind == "forward pre that replaces":
        module.register_forward_pre_hook(lambda m, args: seen.append(copies(args)) or (args[0] * 0.5,))
    elif kind == "full backward":
        module.register_full_backward_hook(lambda m, gi, go: seen.append(copies([*gi, *go])))
    else:
        module.register_full_backward_pre_hook(lambda m, go: seen.append(copies(go)))
    return seen


def outcome(model, path, kind):
    seen = watch(model, path, kind)
    x = torch.randn(X, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        out = model(x)
        out.square().sum().backward()
    except RuntimeError as e:
        return str(e)[:60], None, None
    return seen, out, x.grad


CASES = [
    (*site, kind)
    for site in SITES
    for kind in (KINDS if site[:2] == ("ours", "BasicBlock") else ("forward", "forward that replaces", "full backward"))
]


@pytest.mark.parametrize(("holder", "block", "path", "kind"), CASES, ids=lambda v: v or "model")
def test_a_hook_sees_what_eager_shows(holder, block, path, kind):
    model, reference = fused_and_eager(holder, block)
    seen, out, grad = outcome(model, path, kind)
    expected, expected_out, expected_grad = outcome(reference, path, kind)
    if out is None:  # such as backward hooks on what is modified in place afterwards
        assert isinstance(expected, str) and seen == expected
        return
    assert len(seen) == len(expected) > 0
    for ours, eager in zip([v for call in seen for v in call], [v for call in expected for v in call], strict=True):
        assert (ours is None) == (eager is None)
        if eager is not None:
            assert (ours - eager).norm() <= 1e-4 * eager.norm() + 1e-5 and ours.dtype == eager.dtype
    assert (out - expected_out).norm() <= 1e-4 * expected_out.norm()
    assert (grad - expected_grad).norm() <= 1e-3 * expected_grad.norm()


GLOBAL = {
    "forward": "register_module_forward_hook",
    "forward pre": "register_module_forward_pre_hook",
    "full backward": "register_module_full_backward_hook",
    "full backward pre": "register_module_full_backward_pre_hook",
}


@pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])
@pytest.mark.parametrize("kind", GLOBAL)
def test_global_hooks_fire_for_every_module(kind, holder):
    calls = []
    register = getattr(nn.modules.module, GLOBAL[kind])
    for model in fused_and_eager(holder):
        names = {id(m): name for name, m in model.named_modules()}
        fired = []
        handle = register(lambda m, *args, fired=fired, names=names: fired.append(names[id(m)]))
        try:
            with dispatch.record() as rows:
                model(torch.randn(X, requires_grad=True)).sum().backward()
        except RuntimeError as e:  # backward hooks and `out += identity` exclude each other in eager
            fired.append(str(e)[:80])
        finally:
            handle.remove()
        assert not rows
        calls.append(fired)
    assert calls[0] == calls[1] and calls[0]


def test_hooks_that_do_not_run_in_forward_leave_the_block_fused():
    model, _ = fused_and_eager("ours")
    seen = []
    bn = model.layer2[0].bn1
    bn.register_state_dict_post_hook(lambda *args: seen.append("save"))
    bn.register_load_state_dict_post_hook(lambda *args: seen.append("load"))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert seen == ["save", "load"] and model.layer2[0].why_not_fused(torch.randn(1, 64, 8, 8)) is None


def test_a_removed_hook_leaves_no_trace():
    for holder in ("ours", "torchvision", "timm"):
        model, _ = fused_and_eager(holder)
        handle = model.layer2[0].bn2.register_forward_hook(lambda *args: None)
        x = torch.randn(1, 64, 8, 8)
        assert model.layer2[0].why_not_fused(x) == "bn2 carries a hook"
        handle.remove()
        assert model.layer2[0].why_not_fused(x) is None
