"""What works, and what of it is fused: modes, dtypes, hooks, and children of a block that are not what they were."""

import pytest
import torch
from edits import EDITS, lightly
from torch import nn
from what_works import backward, check, check_refused, each_holder
from what_works import test_a_difference_is_seen as test_a_difference_is_seen


@each_holder
def test_evaluation_without_gradients(holder):
    def action(model, x):
        with torch.no_grad():
            return [model(x)]

    check(holder, action)


@each_holder
def test_evaluation_with_gradients(holder):
    """The statistics are frozen."""
    check(holder, lambda model, x: backward(model(x), model))


@each_holder
def test_training_step(holder):
    check(holder, lambda model, x: [*backward(model.train()(x), model), *model.buffers()])


@each_holder
def test_training_with_frozen_norms(holder):
    def action(model, x):
        for m in model.train().modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval().requires_grad_(False)
        return backward(model(x), model)

    check(holder, action)


@each_holder
def test_some_norms_in_training_some_in_evaluation(holder):
    def action(model, x):
        model.layer2[0].train()
        model.layer2[0].bn2.eval()
        return [*backward(model(x), model), *model.buffers()]

    check(holder, action)


@each_holder
def test_inference_mode(holder):
    def action(model, x):
        with torch.inference_mode():
            return [model(x).clone()]

    check(holder, action)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@each_holder
def test_dtypes(holder, dtype):
    def action(model, x):
        with torch.no_grad():
            return [model.to(dtype)(x.to(dtype))]

    if dtype == torch.float64:
        check(holder, action, "dtype torch.float64", fused=False)
    else:
        check(holder, action)


@each_holder
def test_autocast(holder):
    def action(model, x):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [model(x)]

    check(holder, action)


@each_holder
def test_channels_last(holder):
    last = {"memory_format": torch.channels_last}
    check(holder, lambda model, x: backward(model.to(**last)(x.contiguous(**last)), model))


@each_holder
def test_an_empty_batch(holder):
    check(holder, lambda model, x: [model(x[:0])])


@each_holder
def test_one_value_per_channel_in_training(holder):
    def action(model, x):
        model.train()
        model.layer2.register_forward_pre_hook(lambda m, args: (args[0][:1, :, :1, :1],))
        return [model(x)]

    check_refused(holder, action, ValueError, "Expected more than 1 value per channel when training")


@each_holder
def test_a_wrong_number_of_channels(holder):
    check_refused(holder, lambda model, x: [model(x[:, :2])], RuntimeError, "to have 3 channels")


@each_holder
def test_an_image_without_a_batch(holder):
    check_refused(holder, lambda model, x: [model(x[0])], ValueError, "expected 4D input")


@pytest.mark.parametrize("part", ["conv1", "relu"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@each_holder
def test_a_hook_on_a_child_of_a_block(holder, kind, part):
    child = "act1" if holder == "timm" and part == "relu" else part

    def action(model, x):
        seen = []
        getattr(getattr(model.layer2[0], child), f"register_{kind}")(lambda *args: seen.append(1))
        outs = backward(model(x), model)
        return [*outs, torch.tensor(float(len(seen)))]

    if "backward" in kind and part == "relu":
        check_refused(holder, action, RuntimeError, "is a view and is being modified inplace")
    else:
        check(holder, action, f"{child} carries a hook")


@each_holder
def test_a_hook_on_a_block_a_stage_and_the_network(holder):
    def action(model, x):
        seen = []
        for m in (model, model.layer1, model.layer2[0]):
            m.register_forward_hook(lambda m, args, out: seen.append(out))
        return [model(x), *seen]

    check(holder, action)


@each_holder
def test_a_global_hook(holder):
    def action(model, x):
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(1))
        try:
            return [model(x), torch.tensor(float(len(seen)))]
        finally:
            handle.remove()

    check(holder, action, "a global module hook is registered", fused=False)


# Where the reason is another than in our own block.
REASONS = {
    ("torchvision", "LoRA around a convolution"): None,
    ("timm", "LoRA around a convolution"): None,
    ("torchvision", "Identity instead of a norm"): None,
    ("timm", "Identity instead of a norm"): None,
    ("timm", "SyncBatchNorm"): "bn1 is a SyncBatchNorm, not exactly nn.BatchNorm2d",
    ("timm", "average pool in the shortcut (resnet-d)"): "downsample.0 is a AvgPool2d, not exactly nn.Conv2d",
}


@pytest.mark.parametrize("edit", EDITS)
@each_holder
def test_an_edited_block(holder, edit):
    change, why = EDITS[edit]

    def action(model, x):
        lightly(change, model.layer2[0])
        return backward(model(x), model)

    check(holder, action, REASONS.get((holder, edit), why))
