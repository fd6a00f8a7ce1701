"""What is chosen on a GPU, and what explain() says of it."""

import networks
import pytest
import torch
from emulator import pretended

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.kernels import shapes


def test_explain_tells_of_weights_that_every_forward_copies():
    model, x = networks.network("basic", torch.bfloat16).eval(), networks.images("basic", 2, 64, torch.bfloat16)
    with torch.no_grad(), pretended.recorded() as record:
        model(x)
    [note] = resnet_fused.explain(model, x).notes
    # One of the copies is that of the image. Weights of 1x1 filters have both layouts.
    count = record.count("aten::copy_") - 1
    assert note.startswith(f"{count} weights are not channels_last: each forward copies them, ") and count == 11
    model.to(memory_format=torch.channels_last)
    assert resnet_fused.explain(model, x).notes == []
    with torch.no_grad(), pretended.recorded() as record:
        model(x)
    assert record.count("aten::copy_") == 1


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_autocast_converts_each_weight_in_one_launch(train):
    """Its dtype and its layout at once: without autocast the same weights need as many copies."""
    copies = {}
    for name in ("float32", "autocast"):
        model, x = networks.network("basic").train(train), networks.images("basic", 2, 64)
        low = torch.autocast("cuda", torch.bfloat16, enabled=name == "autocast")
        with low, torch.set_grad_enabled(train), pretended.recorded() as record:
            model(x)
        copies[name] = record.count("aten::copy_")
    # The weights of fc and of 1x1 filters are converted as well, and x, the pooled map and the bias of fc are.
    assert copies["autocast"] - copies["float32"] <= 3 + 3 + 1


@pytest.mark.parametrize(("name", "fused"), [("grouped", False), ("wide-groups", True)])
def test_groups_of_few_channels_are_torchs(name, fused):
    model, x = networks.network(name, torch.bfloat16).eval(), networks.images(name, 2, 56, torch.bfloat16)
    with torch.no_grad(), dispatch.record() as rows:
        model(x)
    reasons = {c.reason for op, _, c in rows if op == "conv_bn_relu" and c.backend == "torch"}
    assert bool(reasons) is not fused
    assert all("channels in each of 32 groups" in reason for reason in reasons)
    assert {c.backend for op, _, c in rows if op == "bn_relu"} <= {"cuda"}


@pytest.mark.parametrize("settings", [("tf32", "none"), ("none", "tf32"), ("ieee", "tf32"), ("tf32", "ieee")])
def test_precisions_that_differ_never_raise(settings):
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = settings
        model, x = networks.network("basic").eval(), networks.images("basic", 2, 64)
        with torch.no_grad(), dispatch.record() as rows:
            model(x)
        ran = {c.backend for op, _, c in rows if op.startswith("conv")}
        assert ran == {"cuda" if settings[0] == "tf32" else "torch"}
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize(
    ("name", "blocks"), [("basic", 5), ("bottleneck", 5), ("zero-pad", 5), ("gray", 5), ("grouped", 0)]
)
def test_a_block_is_one_call_of_the_library(name, blocks, monkeypatch):
    """In evaluation without gradients, whatever the layout of the weights; not where torch runs a convolution."""
    calls, op = [], torch.ops.resnet_fused_pretended.conv_block
    monkeypatch.setattr(pretended._library, "conv_block", lambda *args: calls.append(args) or op(*args), raising=False)
    for weights in (torch.contiguous_format, torch.channels_last):
        model = networks.network(name, torch.bfloat16, weights).eval()
        x = networks.images(name, 2, 64, torch.bfloat16)
        calls.clear()
        with torch.no_grad():
            out = model(x)
        assert len(calls) == blocks
        with torch.no_grad(), dispatch.record():
            assert model(x).stride() == out.stride() and len(calls) == blocks
        with torch.no_grad(), resnet_fused.backend("torch"):
            model(x)
        model(x), model.train()(x)
        assert len(calls) == blocks


@pytest.mark.parametrize(("name", "blocks"), [("basic", 5), ("bottleneck", 5), ("grouped", 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_autocast_casts_each_weight_once_for_a_block_in_one_call(name, blocks, layout):
    """Also where the library does not run the block."""
    model, x = networks.network(name, memory_format=layout).eval(), networks.images(name, 2, 64)
    copies = []
    for one_by_one in (True, False):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model(x)
            with pretended.recorded(one_by_one) as record:
                model(x)
        copies.append(record.count("aten::copy_"))
    assert copies[0] == copies[1] and record.count("ours::conv_block") == blocks


@pytest.mark.parametrize("name", ["basic", "bottleneck", "gray", "grouped", "dilated"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_a_layer_in_training_is_one_call_each_way(name, layout):
    """It runs the same operators of torch on as many bytes as the passes do."""
    model = networks.network(name, torch.bfloat16, layout).train()
    x = networks.images(name, 2, 56, torch.bfloat16, torch.channels_last)
    found = []
    for one_by_one in (True, False):
        model(x).sum().backward()
        model.zero_grad()
        with pretended.recorded(one_by_one) as record:
            out = model(x)
            out.backward(torch.empty_like(out))
        found.append(record.calls)
    passes, calls = found
    assert calls["ours::training_blocks"][0] == calls["ours::training_blocks_backward"][0] == 4
    assert "ours::training_blocks" not in passes
    assert {k: v for k, v in calls.items() if k.startswith("aten::")} == {
        k: v for k, v in passes.items() if k.startswith("aten::")
    }


@pytest.mark.parametrize(("batch", "own"), [(2, 0), (256, 7)])
def test_one_call_runs_the_convolutions_that_the_dispatcher_chose(batch, own, monkeypatch):
    """Those of few tiles are torch's: layers 1 and 2 have 7 convolutions of 128 tiles and more, layers 3 and 4 at most 64."""
    calls, op = [], torch.ops.resnet_fused_pretended.training_blocks
    noted = lambda *args: calls.append(args) or op(*args)  # noqa: E731
    monkeypatch.setattr(pretended._library, "training_blocks", noted, raising=False)
    model = networks.network("basic", torch.bfloat16).train()
    model(networks.images("basic", batch, 64, torch.bfloat16, torch.channels_last))
    assert len(calls) == 4 and sum(map(sum, (args[4] for args in calls))) == own


def test_two_questions_about_one_convolution_have_two_answers():
    """With batch statistics few tiles are torch's, also after somebody asked for the convolution alone."""
    x, weight = (torch.empty(2, 64, 4, 4, device="cuda").to(memory_format=torch.channels_last) for _ in range(2))
    convolution = shapes.convolution_of(x, weight, (1, 1), (1, 1), (1, 1), 1)
    torch.backends.cudnn.allow_tf32 = True
    for _ in range(2):
        assert dispatch.picked("conv_stats", x, weight, convolution=convolution).backend == "cuda"
        assert dispatch.choose_conv_stats(x, weight, convolution).backend == "torch"


def test_a_choice_is_remembered_until_a_setting_changes(monkeypatch):
    x = networks.images("basic", 2, 64).to(memory_format=torch.channels_last)
    asked, pick = [], dispatch.choice.pick
    monkeypatch.setattr(dispatch.choice, "pick", lambda *args, **kwargs: asked.append(args) or pick(*args, **kwargs))

    def ran(t):
        before = len(asked)
        return dispatch.choose("bn_relu", t, None).backend, len(asked) - before

    assert ran(x)[0] == "cuda" and ran(x) == ("cuda", 0)
    with resnet_fused.backend("torch"):
        assert ran(x)[1] == 1
    assert ran(x)[1] == 1 and ran(x) == ("cuda", 0)
    assert ran(x.half())[1] == 1 and ran(x.contiguous())[1] == 1 and ran(x.to("cuda:1"))[1] == 1
    with dispatch.record() as rows:
        assert ran(x)[1] == 1 and len(rows) == 1
