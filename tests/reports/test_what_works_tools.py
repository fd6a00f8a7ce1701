"""What works, and what of it is fused: copies, training machinery, function transforms, compilers and exporters.

AOTInductor, which takes minutes: test_aoti.py."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from what_works import backward, check, check_refused, each_holder

import resnet_fused
from resnet_fused.commands.train.group import process_group

TRANSFORM = "inside a function transform (vmap, grad, jvp)"


@each_holder
def test_deepcopy(holder):
    check(holder, lambda model, x: [copy.deepcopy(model)(x)])


@each_holder
def test_pickle_and_torch_save_of_the_model(holder):
    def action(model, x):
        buffer = io.BytesIO()
        torch.save(pickle.loads(pickle.dumps(model)), buffer)
        buffer.seek(0)
        return [torch.load(buffer, weights_only=False)(x)]

    check(holder, action)


@each_holder
def test_load_state_dict_by_assignment(holder):
    def action(model, x):
        state = {k: v * 0.9 if v.is_floating_point() else v for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return [model(x), *state.values()]

    check(holder, action)


@each_holder
def test_share_memory(holder):
    check(holder, lambda model, x: [model.share_memory()(x)])


@each_holder
def test_meta_device_and_to_empty(holder):
    def action(model, x):
        state = model.state_dict()
        meta = copy.deepcopy(model).to("meta")
        assert meta(x.to("meta")).shape == (3, 5)
        meta.to_empty(device="cpu").load_state_dict(state)
        return [meta(x)]

    check(holder, action)


@each_holder
def test_weights_edited_behind_torchs_back(holder):
    def action(model, x):
        model(x)
        model.layer1[0].conv1.weight.data.mul_(2)
        model.layer1[0].bn1.running_var.numpy().fill(0.5)
        model.layer2[0].bn1.bias.data = torch.ones(128)
        return [model(x)]

    check(holder, action)


def train(model, x, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@each_holder
def test_fused_optimizers(holder):
    def action(model, x):
        return train(model.train(), x, torch.optim.SGD(model.parameters(), lr=0.01, fused=True))

    check(holder, action)


@each_holder
def test_ema_with_buffers(holder):
    def action(model, x):
        ema = AveragedModel(model.train(), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        train(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
        ema.update_parameters(model)
        return [ema.eval()(x)]

    check(holder, action)


@each_holder
def test_swa_with_update_bn(holder):
    def action(model, x):
        swa = AveragedModel(model.train())
        train(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
        swa.update_parameters(model)
        update_bn([x, 2 * x], swa)
        return [swa.eval()(x), *swa.module.buffers()]

    check(holder, action)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@each_holder
def test_checkpoint(holder, reentrant):
    def action(model, x):
        h = model.maxpool(model.train().bn1(model.conv1(x)))
        out = torch.utils.checkpoint.checkpoint(model.layer2, h, use_reentrant=reentrant)
        return [*backward(out, model), *model.buffers()]

    check(holder, action)


@each_holder
def test_distributed_data_parallel(holder):
    """One process, gloo."""

    def action(model, x):
        with process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1):
            ddp = nn.parallel.DistributedDataParallel(model.train(), gradient_as_bucket_view=True)
            return [g.clone() for g in backward(ddp(x), model)]

    check(holder, action)


@each_holder
def test_gradient_penalty_in_training(holder):
    def action(model, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.train()(x).square().sum(), x, create_graph=True)
        return backward(grad * 0.01, model)

    check(holder, action)


@each_holder
def test_gradient_penalty_in_evaluation(holder):
    def action(model, x):
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.requires_grad_(False)(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), x))

    check(holder, action)


@each_holder
def test_functional_call(holder):
    def action(model, x):
        return [torch.func.functional_call(model, {k: 1.1 * v for k, v in model.named_parameters()}, (x,))]

    check(holder, action)


@each_holder
def test_vmap(holder):
    check(holder, lambda model, x: [torch.func.vmap(model)(torch.stack([x, 2 * x]))], TRANSFORM, fused=False)


@each_holder
def test_jvp(holder):
    check(holder, lambda model, x: list(torch.func.jvp(model, (x,), (torch.ones_like(x),))), TRANSFORM, fused=False)


def per_sample_gradients(model, x):
    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    return list(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), x).values())


@each_holder
def test_per_sample_gradients_in_evaluation(holder):
    check(holder, per_sample_gradients, TRANSFORM, fused=False)


@each_holder
def test_per_sample_gradients_in_training(holder):
    def action(model, x):
        return per_sample_gradients(model.train(), x)

    check_refused(holder, action, RuntimeError, "attempted to call in-place operation")


@each_holder
def test_compile_fullgraph(holder):
    def action(model, x):
        torch._dynamo.reset()
        with torch.no_grad():
            return [torch.compile(model, fullgraph=True, backend="aot_eager")(x)]

    check(holder, action)


@each_holder
def test_export(holder):
    def action(model, x):
        with torch.no_grad():
            return [torch.export.export(model, (x,)).module()(x)]

    check(holder, action)


@each_holder
def test_export_in_torchs_operators(holder):
    def action(model, x):
        with torch.no_grad():
            return [torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions()).module()(x)]

    check(holder, action, fused=False)


@each_holder
def test_jit_trace(holder):
    def action(model, x):
        return [torch.jit.trace(model, x, check_trace=False)(x)]

    check(holder, action, "inside torch.jit.trace", fused=False)


@each_holder
def test_jit_script(holder):
    message = "torch.jit.script cannot compile the fused forward of ResNet: use torch.jit.trace or torch.export"
    check_refused(holder, lambda model, x: [torch.jit.script(model)(x)], RuntimeError, message, in_eager=False)


@each_holder
def test_symbolic_trace(holder):
    check(holder, lambda model, x: [torch.fx.symbolic_trace(model)(x)], "input is a Proxy", fused=False)


@each_holder
def test_onnx_in_onnx_runtime(holder):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")

    def action(model, x):
        buffer = io.BytesIO()
        with torch.no_grad():
            torch.onnx.export(model, (x,), buffer, dynamo=False)
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: x.numpy()})]

    check(holder, action, "inside torch.jit.trace", fused=False)
