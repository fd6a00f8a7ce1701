"""The three convolutions of a training step by Winograd, against float64 beside the error of torch's own."""

import pytest
import torch
import torch.nn.functional as F

from resnet_fused.kernels import library
from resnet_fused.measure.accuracy import assert_within_budget

pytestmark = pytest.mark.skipif(library.why_absent() is not None, reason=str(library.why_absent()))
ops = torch.ops.resnet_fused_native
LAST = torch.channels_last
KINDS = ("forward", "input", "weight")

# n, c, k, h, w, padding: odd and even maps, one pixel high, one channel, ragged lines of 16 and panels of 32, one image
# and many, several blocks of tiles (of 64 to 1024, by channels) and several partial sums in a block.
CASES = [
    (1, 1, 1, 3, 3, 1), (2, 1, 40, 4, 5, 1), (2, 40, 1, 5, 4, 1), (1, 3, 17, 1, 7, 1), (3, 17, 3, 7, 1, 1),
    (2, 16, 32, 8, 8, 1), (1, 33, 65, 9, 6, 1), (2, 64, 64, 15, 14, 1), (5, 32, 48, 3, 3, 0), (2, 20, 36, 6, 9, 0),
    (9, 64, 32, 28, 28, 1), (2, 128, 160, 14, 14, 1), (3, 256, 288, 7, 7, 1), (17, 300, 260, 5, 6, 0),
]  # fmt: skip


class Problem:
    def __init__(self, n, c, k, h, w, padding, weight_format=LAST):
        torch.manual_seed(n + c + k + h + w)
        self.padding = padding
        self.x = torch.randn(n, c, h, w).relu().contiguous(memory_format=LAST)
        self.weight = (torch.randn(k, c, 3, 3) / (3 * c**0.5)).contiguous(memory_format=weight_format)
        self.grad = torch.randn(n, k, h + 2 * padding - 2, w + 2 * padding - 2).contiguous(memory_format=LAST)

    def torch(self, dtype=torch.float32):
        """{kind: torch's result}"""
        x, weight, grad = (t.to(dtype) for t in (self.x, self.weight, self.grad))
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [self.padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return dict(zip(KINDS, (F.conv2d(x, weight, padding=self.padding), *found[:2]), strict=True))

    def ours(self, kind):
        """(whether all values were finite, the result)"""
        like = {"forward": self.grad, "input": self.x, "weight": self.weight}[kind]
        out = torch.full_like(like, torch.nan)
        if kind == "forward":
            return ops.winograd_forward(self.x, self.weight, out, self.padding), out
        if kind == "input":
            return ops.winograd_input_gradient(self.grad, self.weight, out, self.padding), out
        return ops.winograd_weight_gradient(self.grad, self.x, out, self.padding), out


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that a kernel does not write is NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def assert_no_bias(ours, eager, exact, what):
    """The mean error of a channel: at most twice eager's, and what chance makes of rounding errors."""
    for dim in (0, 1):
        others = [d for d in range(4) if d != dim]
        bias, of_eager = ((t.double() - exact).mean(others).abs() for t in (ours, eager))
        step = 4 * torch.finfo(torch.float32).eps * exact.square().mean().sqrt()
        chance = 6 / (ours.numel() / ours.shape[dim]) ** 0.5
        rms = (eager.double() - exact).square().mean().sqrt()
        allowed = 2 * of_eager + min(1.0, chance) * (2 * rms + step)
        assert (bias <= allowed).all(), f"{what}: bias {(bias / allowed).max():.2f} of what is allowed"


@pytest.mark.parametrize("weight_format", [LAST, torch.contiguous_format], ids=["KRSC", "KCRS"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, weight_format):
    problem = Problem(*case, weight_format)
    eager, exact = problem.torch(), problem.torch(torch.float64)
    for kind in KINDS:
        finite, got = problem.ours(kind)
        assert finite, kind
        assert_within_budget(got, eager[kind], exact[kind], kind)
        assert_no_bias(got, eager[kind], exact[kind], kind)


@pytest.mark.parametrize("case", [(2, 64, 64, 15, 14, 1), (9, 64, 32, 28, 28, 1), (3, 100, 300, 7, 7, 1)], ids=str)
def test_same_bits_for_every_number_of_threads(case):
    problem, threads = Problem(*case), torch.get_num_threads()
    try:
        for kind in KINDS:
            results = []
            for count in (1, 2, 3, 3):
                torch.set_num_threads(count)
                results.append(problem.ours(kind)[1])
            assert all(torch.equal(result, results[0]) for result in results), kind
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "grad", "weight"])
def test_values_that_are_not_finite_are_found(where, bad):
    for place in (0, -1):
        problem = Problem(2, 35, 37, 9, 8, 1)
        tensor = getattr(problem, where)
        tensor[place, place, place, place] = bad
        reads = {"x": ("forward", "weight"), "grad": ("input", "weight"), "weight": ("forward", "input")}[where]
        for kind in KINDS:
            assert problem.ours(kind)[0] is (kind not in reads), kind


def test_every_layout_of_a_weight():
    """Channels outermost, as a transposed weight has them: neither taps nor input channels are neighbours."""
    problem = Problem(2, 35, 37, 9, 8, 1)
    expected = {kind: problem.ours(kind)[1] for kind in KINDS}
    problem.weight = problem.weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert problem.weight.stride() == (1, 37, 3 * 37 * 35, 37 * 35)
    for kind in KINDS:
        finite, got = problem.ours(kind)
        assert finite and torch.equal(got, expected[kind]), kind
    assert problem.ours("weight")[1].stride() == problem.weight.stride()


def test_batch_of_none():
    for kind in ("forward", "input"):
        finite, got = Problem(0, 3, 5, 6, 6, 1).ours(kind)
        assert finite and got.numel() == 0


X, WEIGHT, GRAD = (torch.randn(2, c, 6, 6).contiguous(memory_format=LAST) for c in (8, 8, 16))
WEIGHT = torch.randn(16, 8, 3, 3)
BAD = {
    "winograd_forward: padding must be 0 or 1, not 2": lambda: ops.winograd_forward(X, WEIGHT, GRAD, 2),
    "winograd_forward: x must be dense channels_last": lambda: ops.winograd_forward(X.contiguous(), WEIGHT, GRAD, 1),
    "winograd_forward: x must be float32": lambda: ops.winograd_forward(X.double(), WEIGHT, GRAD, 1),
    "winograd_forward: weight must be \\[16, 8, 3, 3\\]": lambda: ops.winograd_forward(X, WEIGHT[:, :7], GRAD, 1),
    "winograd_forward: .* with padding 0 does not give": lambda: ops.winograd_forward(X, WEIGHT, GRAD, 0),
    "winograd_input_gradient: weight must be": lambda: ops.winograd_input_gradient(GRAD, WEIGHT[:8], X, 1),
    "winograd_input_gradient: .* does not give": lambda: ops.winograd_input_gradient(GRAD, WEIGHT, X, 0),
    "winograd_weight_gradient: out must be": lambda: ops.winograd_weight_gradient(GRAD, X, WEIGHT[:8], 1),
    "winograd_weight_gradient: grad must be dense": lambda: ops.winograd_weight_gradient(GRAD.mT, X, WEIGHT, 1),
    "winograd_weight_gradient: a batch of none": lambda: ops.winograd_weight_gradient(GRAD[:0], X[:0], WEIGHT, 1),
}


@pytest.mark.parametrize("message", BAD)
def test_messages(message):
    with pytest.raises(RuntimeError, match=message):
        BAD[message]()
