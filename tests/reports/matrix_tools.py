"""Rows of the matrix: copies, training machinery, function transforms, compilers and exporters."""

import copy
import io
import pickle
import tempfile

import torch
from matrix import GROUP, backward, row
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import resnet_fused
from resnet_fused.commands.train.group import process_group

GROUP["now"] = "Copies, checkpoints, memory"


@row("`copy.deepcopy`")
def _(model, x):
    return [copy.deepcopy(model)(x)]


@row("`pickle`, `torch.save` of the model")
def _(model, x):
    buffer = io.BytesIO()
    torch.save(pickle.loads(pickle.dumps(model)), buffer)
    buffer.seek(0)
    return [torch.load(buffer, weights_only=False)(x)]


@row("`state_dict`, `load_state_dict(assign=True)`")
def _(model, x):
    state = {k: v * 0.9 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return [model(x), *state.values()]


@row("`share_memory_`")
def _(model, x):
    model.share_memory()
    return [model(x)]


@row("meta device, `to_empty`")
def _(model, x):
    state = model.state_dict()
    meta = copy.deepcopy(model).to("meta")
    assert meta(x.to("meta")).shape == (3, 5)
    meta.to_empty(device="cpu").load_state_dict(state)
    return [meta(x)]


@row("weights edited through `.data`, numpy, `p.data = ...`")
def _(model, x):
    model(x)
    model.layer1[0].conv1.weight.data.mul_(2)
    model.layer1[0].bn1.running_var.numpy().fill(0.5)
    model.layer2[0].bn1.bias.data = torch.ones(128)
    return [model(x)]


GROUP["now"] = "Training machinery"


def train(model, x, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@row("fused optimizers")
def _(model, x):
    return train(model.train(), x, torch.optim.SGD(model.parameters(), lr=0.01, fused=True))


@row("EMA: `AveragedModel` with buffers")
def _(model, x):
    ema = AveragedModel(model.train(), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    train(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
    ema.update_parameters(model)
    return [ema.eval()(x)]


@row("SWA: `update_bn`")
def _(model, x):
    swa = AveragedModel(model.train())
    train(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
    swa.update_parameters(model)
    update_bn([x, 2 * x], swa)
    return [swa.eval()(x), *swa.module.buffers()]


for reentrant in (True, False):

    @row(f"`checkpoint(use_reentrant={reentrant})`")
    def _(model, x, reentrant=reentrant):
        h = model.maxpool(model.train().bn1(model.conv1(x)))
        out = torch.utils.checkpoint.checkpoint(model.layer2, h, use_reentrant=reentrant)
        return [*backward(out, model), *model.buffers()]


@row("`DistributedDataParallel` (one process, gloo)")
def _(model, x):
    with process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1):
        ddp = nn.parallel.DistributedDataParallel(model.train(), gradient_as_bucket_view=True)
        return [g.clone() for g in backward(ddp(x), model)]


@row("gradient penalty (double backward), training")
def _(model, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.train()(x).square().sum(), x, create_graph=True)
    return backward(grad * 0.01, model)


@row("gradient penalty (double backward), evaluation")
def _(model, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.requires_grad_(False)(x).square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(grad.square().sum(), x))


GROUP["now"] = "Function transforms"


def loss_of(model):
    return lambda params, image: torch.func.functional_call(model, params, (image[None],)).square().sum()


@row("`torch.func.functional_call`")
def _(model, x):
    return [torch.func.functional_call(model, {k: 1.1 * v for k, v in model.named_parameters()}, (x,))]


@row("`vmap`")
def _(model, x):
    return [torch.func.vmap(model)(torch.stack([x, 2 * x]))]


@row("`jvp`")
def _(model, x):
    return list(torch.func.jvp(model, (x,), (torch.ones_like(x),)))


@row("per-sample gradients, evaluation")
def _(model, x):
    per_sample = torch.func.vmap(torch.func.grad(loss_of(model)), in_dims=(None, 0))
    return list(per_sample(dict(model.named_parameters()), x).values())


@row("per-sample gradients, training")
def _(model, x):
    per_sample = torch.func.vmap(torch.func.grad(loss_of(model.train())), in_dims=(None, 0))
    return list(per_sample(dict(model.named_parameters()), x).values())


GROUP["now"] = "Compilers and exporters"


@row("`torch.compile(fullgraph=True)`")
def _(model, x):
    torch._dynamo.reset()
    with torch.no_grad():
        return [torch.compile(model, fullgraph=True, backend="aot_eager")(x)]


@row("`torch.export`")
def _(model, x):
    with torch.no_grad():
        return [torch.export.export(model, (x,)).module()(x)]


@row("`torch.export`, `decompositions()`")
def _(model, x):
    with torch.no_grad():
        return [torch.export.export(model, (x,)).run_decompositions(resnet_fused.decompositions()).module()(x)]


@row("`torch.jit.trace`")
def _(model, x):
    return [torch.jit.trace(model, x, check_trace=False)(x)]


@row("`torch.jit.script`")
def _(model, x):
    return [torch.jit.script(model)(x)]


@row("`torch.fx.symbolic_trace`")
def _(model, x):
    return [torch.fx.symbolic_trace(model)(x)]


@row("ONNX export, in ONNX Runtime")
def _(model, x):
    import onnxruntime

    buffer = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(model, (x,), buffer, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


@row("`torch.export`, AOTInductor")
def _(model, x):
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(model, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2")
        return [torch._inductor.aoti_load_package(package)(x)]
