"""A residual block in every pair of circumstances: shape, format, dtype, mode, statistics, gradients, structure.

Fused and eager are each compared with float64, whose ReLUs get the masks of the very run they judge. The cases cover
every pair of two values of two axes, not the 60,000 combinations.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import resnet_fused
from resnet_fused.measure.accuracy import budget_used, gradient_budget_used
from resnet_fused.reports.verify.masks import ReluMasks, WithMasks

NAN, INF = float("nan"), float("inf")
AXES = {
    "shape": [(2, 16, 28, 28), (1, 16, 20, 20), (8, 16, 9, 11), (2, 16, 4, 4), (0, 16, 12, 12), (3, 16, 15, 15)],
    "format": ["nhwc", "nchw", "sliced", "expanded"],
    "dtype": ["fp32", "fp16", "bf16", "autocast"],
    "mode": ["train", "eval", "frozen", "mixed"],
    "stats": ["normal", "far-mean", "tiny-variance", "zero-gamma", "nan", "inf", "constant", "outlier"],
    "grads": ["all", "conv", "bn", "x", "none"],
    "structure": ["identity", "projection", "hooked", "pruned", "parametrized", "shared"],
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "autocast": torch.float32}


def pairs_of(case, names):
    return set(itertools.combinations([(name, case[name]) for name in names if name in case], 2))


def all_pairs(axes):
    """Cases that contain every pair of values of two axes, greedily: each next value is the one with most new pairs."""
    names = list(axes)
    missing = set().union(*(
        {((a, x), (b, y)) for x in axes[a] for y in axes[b]} for a, b in itertools.combinations(names, 2)
    ))  # fmt: skip
    cases = []
    while missing:
        case = dict(min(missing, key=repr))
        for name in names:
            if name not in case:
                new = [len(pairs_of(case | {name: value}, names) & missing) for value in axes[name]]
                case[name] = axes[name][new.index(max(new))]
        missing -= pairs_of(case, names)
        cases.append({name: case[name] for name in names})
    return cases


CASES = all_pairs(AXES)


class Scaled(nn.Module):
    def forward(self, weight):
        return weight * 1.25


def block_of(case):
    torch.manual_seed(1)
    stride, planes = (2, 24) if case["structure"] == "projection" else (1, 16)
    downsample = None
    if case["structure"] == "projection":
        downsample = nn.Sequential(nn.Conv2d(16, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
    block = resnet_fused.BasicBlock(16, planes, stride, downsample)
    for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.4, 1.2)
        nn.init.uniform_(bn.bias, -0.3, 0.3)
        nn.init.uniform_(bn.running_mean, -0.3, 0.3)
        nn.init.uniform_(bn.running_var, 0.5, 1.5)
        if case["stats"] == "zero-gamma":
            nn.init.zeros_(bn.weight)
            bn.weight.data[::2] = -0.5
        if case["stats"] == "tiny-variance":
            bn.running_var.fill_(1e-12)
    if case["structure"] == "hooked":
        block.bn1.register_forward_hook(lambda *_: None)
    if case["structure"] == "pruned":
        prune.l1_unstructured(block.conv1, "weight", 0.5)
    if case["structure"] == "parametrized":
        parametrize.register_parametrization(block.conv2, "weight", Scaled())
    block.train(case["mode"] in ("train", "mixed"))
    if case["mode"] == "mixed":
        block.bn2.eval()
    for name, p in block.named_parameters():
        trained = case["mode"] != "frozen" or "bn" not in name
        p.requires_grad_(trained and case["grads"] in ("all", "bn" if "bn" in name else "conv"))
    return block.to(DTYPES[case["dtype"]])


def input_of(case):
    n, c, h, w = case["shape"]
    x = torch.randn(n, c, h, w)
    if case["stats"] == "far-mean":
        x = x + 1e3
    if case["stats"] == "tiny-variance":
        x = x * 1e-6 + 0.5
    if n and case["stats"] in ("nan", "inf"):
        x[0, 3, 2, 1] = NAN if case["stats"] == "nan" else INF
    if case["stats"] == "constant":
        x[:, 5] = 0.75
    if n and case["stats"] == "outlier":
        x[0, 3, 2, 1] = 1e4
    x = x.to(DTYPES[case["dtype"]])
    if case["format"] == "nhwc":
        return x.contiguous(memory_format=torch.channels_last)
    if case["format"] == "sliced":
        wide = torch.full((n, c, h, w + 3), NAN, dtype=x.dtype)
        wide[..., 1 : w + 1] = x
        return wide[..., 1 : w + 1]
    return x[:, :, :, :1].expand(n, c, h, w) if case["format"] == "expanded" else x


def run(block, x, case, masks=None):
    """(outputs, gradients, masks) of one step of `block`, applied twice where it is shared."""
    x = x.detach().requires_grad_(case["grads"] in ("all", "x"))
    collected = ReluMasks() if masks is None else WithMasks(masks)
    with torch.autocast("cpu", torch.bfloat16, enabled=case["dtype"] == "autocast" and masks is None), collected:
        out = block(x)
        if case["structure"] == "shared":
            out = block(out)
    wanted = [t for t in (x, *block.parameters()) if t.requires_grad]
    if not wanted:
        return out, [], getattr(collected, "masks", None)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, wanted, grad, allow_unused=True)
    return out, [g for g in grads if g is not None], getattr(collected, "masks", None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(v).replace(" ", "") for v in case.values()))
def test_a_block(case):
    ours, eager, oracle, oracle_eager = blocks = [block_of(case) for _ in range(4)]  # a pruned block has no deepcopy
    for block in blocks[1:]:
        block.why_not_fused = lambda x: "the reference"
    oracle.double(), oracle_eager.double()
    x = input_of(case)
    out, grads, masks = run(ours, x, case)
    out_eager, grads_eager, masks_eager = run(eager, x, case)
    exact, grads_exact, _ = run(oracle, x.double(), case, masks)
    _, grads_exact_eager, _ = run(oracle_eager, x.double(), case, masks_eager)

    assert out.dtype == out_eager.dtype and out.stride() == out_eager.stride()
    assert budget_used(out, out_eager, exact) <= 1
    assert len(grads) == len(grads_eager) and all(a.dtype == b.dtype for a, b in zip(grads, grads_eager, strict=True))
    if all(g.isfinite().all() for g in grads_eager) and grads:
        assert gradient_budget_used(grads, grads_eager, grads_exact, grads_exact_eager) <= 1
    else:
        assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(grads, grads_eager, strict=True))
    for (name, a), b, e in zip(ours.named_buffers(), eager.buffers(), oracle.buffers(), strict=True):
        if a.is_floating_point():
            assert budget_used(a, b, e) <= 1, name
        else:
            assert torch.equal(a, b), name


def test_the_cases_cover_every_pair():
    names = list(AXES)
    for a, b in itertools.combinations(names, 2):
        assert {(case[a], case[b]) for case in CASES} == set(itertools.product(AXES[a], AXES[b]))
