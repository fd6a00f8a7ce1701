"""freeze(dtype="fp8"): what runs in e4m3 and in which scales, the numbers of that arithmetic, errors, refusals, files.

On a CPU whole networks run by the formula in torch (backend "eager"), which has the kernel's numbers (test_conv_fp8.py), and a
small one in Triton's interpreter.
"""

import pytest
import torch
import torch.nn.functional as F
from fp8_cases import frozen, net

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.frozen.fold import fold
from resnet_fused.frozen.fp8 import layers as fp8_layers
from resnet_fused.frozen.fp8.engine import Fp8Engine, freeze_fp8
from resnet_fused.frozen.gpu.choose import Candidate, candidates
from resnet_fused.frozen.gpu.head import PoolLinear
from resnet_fused.frozen.network import Apply, ConvBn
from resnet_fused.kernels import e4m3 as fp8
from resnet_fused.kernels.e4m3 import E4M3

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("measured_here")


def by_hand(engine, x):
    """The last map, block by block, in float64 on e4m3 values: not by the engine's plan, program, formula or scales."""

    def to_e4m3(value, largest):
        scale = largest / 448
        return (value.double() / scale).clamp(-448, 448).float().to(E4M3).double() * scale

    def conv(step, value):
        weight, bias = (t.double() for t in fold(step.conv, step.bn))
        if step.conv.groups == 1:
            scale = weight.abs().amax((1, 2, 3), keepdim=True) / 448
            weight = (weight / scale).float().to(E4M3).double() * scale
        c = step.conv
        return F.conv2d(value, weight, bias, c.stride, c.padding, c.dilation, c.groups)

    stem, *steps, head = engine._steps
    largest = {step.input: engine.largest[step.name] for step in steps if isinstance(step, ConvBn)}
    values = {stem.output: stem.run(engine._replay.filled(x), None, None).double()}
    for step in steps:
        x = values[step.input]
        if isinstance(step, Apply):
            values[step.output] = step.module(x)
            continue
        out = conv(step, to_e4m3(x, largest[step.input]))
        if step.adds:  # in e4m3, but for a value that the pool or the stem has written
            out = out + values[step.residual]
        out = torch.relu(out) if step.relu else out
        if step.output in largest:
            out = to_e4m3(out, largest[step.output])
        elif not step.relu:
            out = to_e4m3(out, engine.largest[f"{step.name}, result"])
        values[step.output] = out if step.output != head.input else out.to(torch.bfloat16).double()
    return values[head.input]


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "zero_pad", "identity-pool"])
@pytest.mark.usefixtures("quick")
def test_the_numbers_of_e4m3_arithmetic(device, kind):
    model, x = net(kind, device), torch.randn(3, 3, 32, 32, device=device)
    engine = frozen(model, x)
    logits, last = engine(x), by_hand(engine, x)
    (head,) = (launch.layer for launch in engine._program.launches if isinstance(launch.layer, PoolLinear))
    expected = head(last.to(torch.bfloat16).contiguous(memory_format=torch.channels_last))
    off = (logits.double() - expected.double()).norm() / expected.double().norm()
    assert off < (5e-3 if device == "cpu" else 2e-2), (
        "a sum next to the middle of two values may round otherwise, no more"
    )
    assert logits.dtype == torch.bfloat16 and not torch.equal(engine(x.flip(0)), logits)
    rows = {row["name"]: row for row in engine.rows}
    others = [name for name, row in rows.items() if row["dtype"] != E4M3]
    assert others == ["conv1", "avgpool+fc"] and rows["conv1"]["dtype"] == torch.bfloat16
    assert "input channels in multiples of 16, not 3" in rows["conv1"]["reason"]


@pytest.mark.usefixtures("quick")
def test_what_is_reported(device):
    x = torch.randn(3, 3, 32, 32, device=device)
    engine = frozen(net("basic", device), x)
    e = engine.errors
    assert e["images"] == 3 and 2 * e["bfloat16"] < e["fp8"] < 0.1, (
        "three bits of a significand where bfloat16 has seven"
    )
    assert 0 <= e["fp8 agrees"] <= 3 and e["bfloat16 agrees"] == 3
    text = str(resnet_fused.explain(engine, None))
    assert f"relative error {e['fp8']:.2g} in fp8, {e['bfloat16']:.2g} in eager bfloat16" in text.splitlines()[-1]
    largest = engine.largest
    line = next(line for line in text.splitlines() if line.startswith("layer2.0.conv2"))
    first = next(line for line in text.splitlines() if line.startswith("layer1.0.conv2"))
    assert f"writes {largest['layer2.0.conv1'] / 448:.3g}" in first
    for word, name in (
        ("reads", "layer2.0.conv2"),
        ("adds", "layer2.0.downsample, result"),
        ("reads", "layer2.0.conv2"),
    ):
        assert f"{word} {largest[name] / 448:.3g}" in line
    assert "float8_e4m3fn" in line and "writes bfloat16" in text
    parameters = sum(p.numel() for p in engine._model.parameters())
    assert parameters < engine.memory["parameters"] < 1.1 * parameters


@pytest.mark.usefixtures("quick")
def test_calibration_sees_what_every_convolution_reads(device):
    model, x = net("bottleneck", device), torch.randn(2, 3, 32, 32, device=device)
    engine, seen = frozen(model, x), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name != "conv1":
            module.register_forward_pre_hook(lambda m, a, name=name: seen.__setitem__(name, a[0].abs().max().item()))
    with torch.no_grad():
        model(x)
    found = {name.removesuffix(".0"): value for name, value in seen.items()}
    assert found == pytest.approx({k: v for k, v in engine.largest.items() if "result" not in k}, rel=1e-3)
    assert len(engine.largest) == len(found) + 2


@pytest.mark.usefixtures("interpreted")
def test_forms_of_a_network_with_convolutions_that_stay_in_bfloat16():
    """A grouped convolution in every block: it reads and writes bfloat16, and its neighbours convert."""
    with resnet_fused.backend("eager"):
        engine = frozen(net("groups"), torch.randn(2, 3, 32, 32))
    forms = {step.name: form for step, form in engine._forms.items()}
    assert len(forms) == 6 and not any(".conv2" in name for name in forms)
    assert forms["layer1.0.conv1"].writes is None and forms["layer1.0.conv3"].writes is not None
    assert forms["layer2.0.conv3"].writes is None, "the head reads bfloat16"
    assert forms["layer1.0.conv3"].adds == forms["layer1.0.downsample"].writes is not None
    entries = [launch for launch in engine._program.launches if isinstance(launch.layer, fp8_layers.Entry)]
    assert len(entries) == 3, "the pool's result, and that of every grouped convolution"
    rows = {row["name"]: row for row in engine.rows}
    assert "one group, not 2" in rows["layer1.0.conv2"]["reason"] and rows["layer1.0.conv2"]["dtype"] == torch.bfloat16


def test_in_the_interpreter(device):
    """The kernels in the engine, of a network of 16, 32 and 64 channels; elsewhere the formula runs in their place."""
    if (why := fp8.why_not(torch.device(device))) is not None:
        pytest.skip(why)
    model, x = net("zero_pad", device), torch.randn(1, 3, 12, 12, device=device)
    engine = frozen(model, x)
    with dispatch.record() as rows:
        ours = engine._program(engine._replay.filled(x))
    ran = [op for op, _, choice in rows if choice.backend == "triton"]
    assert ran.count("conv_fp8") == 6 and ran.count("quantise_fp8") == 1
    with resnet_fused.backend("eager"):
        expected = engine._program(engine._replay.filled(x))
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())


@pytest.mark.usefixtures("quick")
def test_refresh_quantises_again_in_the_same_memory(device):
    model, x = net("zero_pad", device), torch.randn(2, 3, 16, 16, device=device)
    engine = frozen(model, x)
    layers = [step.run for step in engine._convolutions[1:]]
    addresses = [t.data_ptr() for layer in layers for t in layer.tensors.values()]
    before, scales = engine(x), dict(engine.largest)
    with torch.no_grad():
        for t in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("running_var"))):
            t.mul_(1.2)
    assert torch.equal(engine(x), before), "a snapshot"
    engine.refresh()
    assert addresses == [t.data_ptr() for layer in layers for t in layer.tensors.values()] and engine.largest == scales
    kept = {"largest": scales, "errors": engine.errors}
    again = freeze_fp8(model, x, graph=device == "cuda", calibration=kept)
    off = (engine(x) - again(x)).abs().max()
    assert off <= (0 if device == "cpu" else 2e-2 * before.abs().max()), "on a GPU another tile may have been chosen"
    assert not torch.allclose(engine(x), before, rtol=5e-2)


@pytest.mark.usefixtures("quick")
def test_files_keep_scales_and_errors(device, tmp_path):
    pytest.importorskip("safetensors")
    model, x = net("basic", device), torch.randn(2, 3, 32, 32, device=device)
    engine = frozen(model, x, batch="pad")
    engine.save(tmp_path / "e.safetensors")
    loaded = resnet_fused.load_engine(tmp_path / "e.safetensors", device)
    assert type(loaded) is Fp8Engine and torch.equal(loaded(x), engine(x)) and loaded.batch == "pad"
    assert loaded.errors == engine.errors and loaded.largest == engine.largest and loaded.notes == engine.notes
    assert torch.equal(loaded(x[:1]), engine(x[:1]))


@pytest.mark.usefixtures("interpreted")
def test_the_steps_around_a_replay(waits):
    model, x = net("zero_pad"), torch.randn(4, 3, 16, 16)
    with resnet_fused.backend("eager"), torch.no_grad():
        calls = freeze_fp8(model, x, graph=False, batch="pad")
        kept = {"largest": calls.largest, "errors": calls.errors}
        engine = Fp8Engine(model, x, True, "pad", kept)._made(x)
        for images in (x, x[:1], torch.cat([x, x[:2]])):
            assert torch.equal(engine(images), calls(images))


@pytest.mark.usefixtures("quick")
def test_ways_that_are_measured(device):
    """What a GPU chooses among: the default and tiles with eight warps, each gated by its numbers."""
    engine = frozen(net("basic", device), torch.randn(2, 3, 32, 32, device=device))
    step, form = next(iter(engine._forms.items()))
    ways = candidates(fp8_layers.options(step, form))
    seconds = fp8_layers.seconds_of(step, form, ways, torch.device(device), False, 0.0)
    assert [way.name for way in seconds] == [way.name for way in ways] and len(ways) == 3
    assert all(0 < s < float("inf") for s in seconds.values())
    assert {way.make(step, torch.bfloat16).tile[2] for way in ways[1:]} == {8}

    class Wrong(fp8_layers.Conv):
        def __call__(self, x, residual, out):
            return super().__call__(x, residual, out).zero_()

    wrong = Candidate("wrong", lambda step, dtype: Wrong(step, dtype, form))
    with pytest.raises(ValueError, match=r"nothing runs layer1.0.conv1 with the numbers of e4m3 arithmetic"):
        fp8_layers.seconds_of(step, form, [wrong], torch.device(device), False, 0.0)
