"""The ways see what they are there for: wrong numbers, other strides, silent fallbacks, errors that are late or unexpected."""

import pytest
import torch
from torch import nn
from ways import Cell, Way


def check(act, kind="ours", mode="gradients", **fields):
    return Cell(Way("a way", act, **fields), kind, mode).check()


def see(value):
    def act(net):
        net.step()
        net.see(value(net.fused))

    return act


def scaled(net):
    net.step()
    with torch.no_grad():
        net.outs[0].mul_(1 + 1e-4 * net.fused)


def counted(net):
    net.model.bn1.num_batches_tracked += net.fused
    net.step()


def statistics(net):
    net.step()
    net.model.bn1.running_mean += 1e-4 * net.fused


def gradient_of_one_norm(net):
    net.step()
    net.part("norm").bias.grad *= 1 + 1e-2 * net.fused


def drawn(net):
    net.step()
    torch.rand(1 + net.fused)


def raises(net):
    net.step()
    if net.fused:
        raise ValueError("ours alone")


def raises_in_eager(net):
    net.step()
    if not net.fused:
        raise ValueError("eager alone")


def raises_late(net):
    net.step()
    if net.fused:
        net.model.conv1.weight.data += 1
        raise ValueError("refused by name")


def raises_at_once(net):
    if net.fused:
        net.before = net.state()
        raise ValueError("refused by name")
    net.step()


def raises_at_length(net):
    if net.fused:
        net.before = net.state()
        raise ValueError("refused by name\nand more")
    net.step()


def hooked(net):
    net.part("conv").register_forward_hook(lambda *args: None)
    net.step()


WRONG = {
    "numbers": (scaled, {}, "outputs: .* of the error budget"),
    "a gradient": (gradient_of_one_norm, {}, "gradients: .* of the error budget"),
    "a counter": (counted, {}, "bn1.num_batches_tracked is 1, in eager 0"),
    "running statistics": (statistics, {}, "buffers: .* of the error budget"),
    "strides": (see(lambda fused: torch.zeros(2, 3).t() if fused else torch.zeros(3, 2)), {}, "has strides"),
    "a dtype": (see(lambda fused: torch.zeros(2, dtype=torch.half if fused else torch.float)), {}, "torch.float16"),
    "an order": (see(lambda fused: fused), {}, "is True, in eager False"),
    "random numbers": (drawn, {}, "the next random number"),
    "an error of ours": (raises, {}, "ours alone raises ValueError: ours alone"),
    "another error than the one that is named": (raises, {"refused": "by name"}, "ours alone raises"),
    "an error of eager": (raises_in_eager, {}, "eager raises ValueError: eager alone, ours nothing"),
    "an error after a change": (raises_late, {"refused": "by name"}, "the network has changed before the error"),
    "an error of two lines": (raises_at_length, {"refused": "by name"}, "more than one line"),
    "no refusal": (hooked, {"refused": "by name"}, "is not refused"),
    "a fallback that is not expected": (hooked, {}, "is not fused everywhere: .*conv2 carries a hook"),
    "another reason": (hooked, {"why": "a tail"}, "the reason is not 'a tail'"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_difference_is_seen(what):
    act, fields, message = WRONG[what]
    with pytest.raises(AssertionError, match=rf"^a way, ours, gradients: .*{message}"):
        check(act, **fields)


def test_a_silent_fallback_is_seen():
    def act(net):
        """Fused ops are there in eager's place, and no module says so."""
        with torch.no_grad():
            net.outs.append(nn.functional.linear(net.x.flatten(1)[:, :5], torch.eye(5, dtype=net.x.dtype)))

    with pytest.raises(AssertionError, match="nothing is fused, and nobody says why"):
        check(act)


def test_the_three_outcomes():
    assert check(lambda net: net.step()) == "fused"
    assert check(hooked, why="carries a hook") == "partly modules: conv2 carries a hook"
    assert check(raises_at_once, refused="by name") == "refused: ValueError: refused by name"
    assert check(lambda net: net.step(x=net.x[:, :2])).startswith("as eager: RuntimeError: ")


def test_a_value_on_the_other_side_of_zero_is_forgiven_once():
    """A ReLU may decide otherwise for one of three images; for all of them it is a mistake."""
    tried = []

    def act(net, wrong):
        net.step()
        if net.fused and len(tried) < wrong:
            tried.append(1)
            net.part("norm").bias.grad *= 1.01

    check(lambda net: act(net, 2))
    tried.clear()
    with pytest.raises(AssertionError, match="gradients"):
        check(lambda net: act(net, 3))
