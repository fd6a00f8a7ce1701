"""The tolerance rule of the tests and of `verify`: at most twice eager's own error against float64, in three norms."""

import math

import torch

from ..kernels.precision import tf32_allowed

TF32 = 2.0**-11  # the largest relative error of a value that is rounded to TF32

SIGMAS = 6.0  # how far from 0 the mean of errors without a bias may be by chance: one channel in 10^9

ABSURD = 0.5  # relative to the norm of the result; rounding never makes eager err so much


def exact(t):
    """Float64 copy of the (already rounded) values, detached, in the same memory format."""
    return None if t is None else t.detach().double()


def rounds_to_tf32(t):
    """Whether convolutions may have rounded their factors to TF32 before they computed `t`."""
    return t.dtype == torch.float32 and t.device.type == "cuda" and tf32_allowed()


def absurd(eager, oracle):
    """Whether eager's result is wrong by more than rounding: torch 2.13 computes some bfloat16 convolutions wrongly on
    CPUs with a matrix unit. Values that float64 does not have either do not count."""
    return off_by(eager, oracle) > ABSURD


def off_by(ours, oracle):
    """The norm of the error of tensors relative to their own norm: the largest."""
    found = [0.0]
    for t, wide in zip(ours, oracle, strict=True):
        finite = wide.isfinite()
        off = ((exact(t) - wide)[finite].norm() / wide[finite].norm().clamp_min(1e-30)).item()
        found.append(off if off == off else float("inf"))
    return max(found)


def budget_used(ours, eager, oracle, oracle_eager=None, channel_dim=1, factor=2.0, tf32=None):
    """Share of the error budget that `ours` uses; <= 1 passes, infinite where NaNs or infinities differ.

    `oracle_eager`: the exact values that eager is compared with, where they differ from `oracle`. A gradient is exact for the
    ReLU mask of the output it belongs to, and the outputs of ours and eager's may round to different masks. `channel_dim`:
    None takes one RMS over all values, for tensors with only a few values per channel (logits).

    There are several norms, because each misses something: the largest error of all values, and the RMS error of every channel
    (in bfloat16 one channel that is 2 % off passes the first and not the second). The budget has a floor, in units in the
    last place of a typical value: half a unit in 16-bit types, where eager's own rounding is always there to compare with, and
    four in float32, where the few values of a small channel may all happen to round well in eager. While TF32 is allowed
    (`tf32`; None: as `rounds_to_tf32` says) the floor is one rounding to TF32, since cuDNN may choose a kernel without TF32
    for eager, whose error is then a thousand times smaller.

    In 16-bit types a third norm is the bias, the mean error of every channel: rounding errors are as often up as down, so over
    n values their mean is about the RMS over sqrt(n), and values that are truncated are seen. Where `channel_dim` is None, the
    bias is the error along the values themselves: logits that are all 1 % too small have a mean error of about 0.
    """
    if not ours.shape == oracle.shape == eager.shape or ours.dtype != eager.dtype:
        raise AssertionError(
            f"ours is {ours.dtype} {tuple(ours.shape)}, eager {eager.dtype} {tuple(eager.shape)}, "
            f"the oracle {tuple(oracle.shape)}"
        )
    if ours.numel() == 0:
        return 0.0
    oracle_eager = oracle if oracle_eager is None else oracle_eager
    finite = oracle.isfinite() & eager.isfinite() & oracle_eager.isfinite()
    if not torch.equal(ours.isnan(), eager.isnan()) or not torch.equal(
        ours[~finite].nan_to_num(), eager[~finite].nan_to_num()
    ):
        return math.inf
    step = _step(ours, tf32)
    zero = torch.zeros((), dtype=torch.float64, device=ours.device)
    scale = torch.where(finite, oracle, zero)
    error_ours = torch.where(finite, ours.double() - oracle, zero)
    error_eager = torch.where(finite, eager.double() - oracle_eager, zero)
    tiny = torch.finfo(ours.dtype).tiny
    worst = error_ours.abs().max() / (factor * error_eager.abs().max() + step * scale.abs().max() + tiny)
    if ours.dim() <= 1:
        return worst.item()
    others = [d for d in range(ours.dim()) if d != channel_dim]  # all of them for None

    def rms(t):
        return t.square().mean(others).sqrt()

    def typical(channel_rms):
        # A small channel is not judged by its own size: it is a sum of larger terms and errs by a share of these terms, a
        # ReLU may leave one value of it, and eager may round that value well. Judged by their own size, 36 of 400 random
        # bfloat16 convolutions with 64 channels of 7x7 exceeded the budget; by half the mean of all, none did (measured).
        return channel_rms.clamp_min(channel_rms.mean() * (1.0 if ours.dtype == torch.float32 else 0.5))

    allowed = factor * rms(error_eager) + step * typical(rms(scale)) + tiny
    shares = [worst.item(), (rms(error_ours) / allowed).max().item()]
    if ours.dtype != torch.float32:
        direction = 1.0 if channel_dim is not None else scale / (rms(scale) + tiny)
        bias, of_eager = ((t * direction).mean(others).abs() for t in (error_ours, error_eager))
        values = ours.numel() // (1 if channel_dim is None else ours.shape[channel_dim])
        chance = SIGMAS / max(1, values) ** 0.5
        shares.append((bias / (factor * of_eager + allowed * min(1.0, chance))).max().item())
    return max(shares)


def _step(ours, tf32):
    """The floor of a budget, relative to a typical value."""
    if rounds_to_tf32(ours) if tf32 is None else tf32:
        return TF32
    return torch.finfo(ours.dtype).eps * (4.0 if ours.dtype == torch.float32 else 0.5)


def channel_dim_of(t):
    """The `channel_dim` of `budget_used` for any tensor: 1, or None where a channel has fewer than 64 values, which eager may
    all round well by chance (measured: 8 values a channel, one convolution 0.94 to 1.47 of the budget in eight draws)."""
    return 1 if t.dim() > 1 and t.numel() >= 64 * t.shape[1] else None


def assert_within_budget(ours, eager, oracle, what, **kwargs):
    share = budget_used(ours, eager, oracle, **kwargs)
    if not share <= 1.0:
        raise AssertionError(f"{what}: {share:.2f} of the error budget (2x eager's own error against float64)")


def gradient_budget_used(ours, eager, oracle, oracle_eager, factor=2.0):
    """The same rule for the gradients of a whole model, lists of one tensor per parameter: the worst relative error.

    Errors are relative to the parameter's own gradient, in the 2-norm. The worst parameter of ours is compared with the worst
    of eager's, since chance decides which parameter is worst.
    """

    def worst(grads, exact_grads):
        return max(
            ((g.double() - e).norm() / e.norm().clamp_min(torch.finfo(g.dtype).tiny)).nan_to_num(nan=math.inf).item()
            for g, e in zip(grads, exact_grads, strict=True)
        )

    floor = TF32 if rounds_to_tf32(ours[0]) else 4 * torch.finfo(ours[0].dtype).eps
    return worst(ours, oracle) / (factor * worst(eager, oracle_eager) + floor)
