"""Whatever people do to a module: the fused network does as eager does, in values, errors and side effects."""

import copy
import io
import pickle

import pytest
import torch
from foreign import Plain, assert_same, fused_and_eager, outcome
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.commands.train.group import process_group

X = (2, 3, 32, 32)
# A converted torchvision network runs our forward; tests/ways has it too.
HOLDERS = pytest.mark.parametrize("holder", ["ours", "timm"])


@HOLDERS
def test_modes_layer_by_layer(holder):
    models = fused_and_eager(holder)
    x = torch.randn(4, 3, 32, 32)
    for m in models:
        m.train()
        m.layer1[0].bn1.eval()
        m.layer2.eval()
        m.layer2[0].downsample[1].train()
        m.layer2[0].bn2.requires_grad_(False)
        m.conv1.requires_grad_(False)
    assert_same(outcome(models[0], x), outcome(models[1], x), 5e-3)
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("holder", ["ours", "torchvision", "timm"])
def test_copies(holder):
    model, _ = fused_and_eager(holder)
    x = torch.randn(X)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        with dispatch.record() as rows:
            assert torch.equal(copied(x), expected) and rows
        copied.conv1.weight.data.zero_()
    assert torch.equal(model(x), expected), "a copy shares nothing"


@HOLDERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(holder, dtype):
    model, reference = fused_and_eager(holder)
    x = torch.randn(X)
    exact = copy.deepcopy(reference).double()(x.double())
    a, b = (m.to(dtype)(x.to(dtype)) for m in (model, reference))
    assert a.dtype == b.dtype == dtype
    assert (a - exact).norm() <= 2 * (b - exact).norm() + 1e-9
    assert model.bn1.running_var.dtype == dtype and model.bn1.num_batches_tracked.dtype == torch.int64


@HOLDERS
def test_nothing_is_kept_from_weights_that_changed(holder):
    """share_memory_, assign=True, .data, in-place edits, numpy: the next call computes with what is there."""
    model, reference = fused_and_eager(holder)
    x = torch.randn(X)
    model.share_memory()
    assert all(p.is_shared() for p in model.parameters()) and all(b.is_shared() for b in model.buffers())
    edits = [
        lambda m: m.layer1[0].conv1.weight.data.mul_(2),
        lambda m: m.layer1[0].bn1.running_var.numpy().fill(0.25),
        lambda m: setattr(m.layer1[0].conv2.weight, "data", torch.full_like(m.layer1[0].conv2.weight, 0.01)),
        lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
        lambda m: setattr(m.layer2[0].bn2, "bias", nn.Parameter(torch.ones(128))),
    ]
    with torch.no_grad():
        model(x)
        for edit in edits:
            for m in (model, reference):
                edit(m)
            torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


@HOLDERS
def test_meta_to_empty_and_lazy_materialisation(holder):
    """Built on the meta device, given memory later: `to_empty` and then a checkpoint, or `assign=True` alone."""
    model, reference = fused_and_eager(holder)
    state, x = reference.state_dict(), torch.randn(X)
    for materialise in (
        lambda m: m.to_empty(device="cpu").load_state_dict(state),
        lambda m: m.load_state_dict(state, assign=True),
    ):
        meta = copy.deepcopy(model).to("meta")
        assert meta(torch.empty(X, device="meta")).shape == (2, 5)
        materialise(meta)
        with torch.no_grad(), dispatch.record() as rows:
            torch.testing.assert_close(meta(x), reference(x), rtol=1e-4, atol=1e-4)
        assert rows


def test_lazy_convolutions():
    """nn.LazyConv2d becomes an nn.Conv2d in its first forward; until then its hooks say that it must run itself."""
    block = Plain()
    block.first, block.norm_a = nn.LazyConv2d(8, 3, padding=1, bias=False), nn.LazyBatchNorm2d()
    resnet_fused.convert(block.eval())
    with dispatch.record() as rows:
        block(torch.randn(1, 8, 6, 6))
    fused = [op for op, _, _ in rows]
    assert type(block.first) is nn.Conv2d
    with dispatch.record() as rows:
        resnet_fused.convert(resnet_fused.unconvert(block))(torch.randn(1, 8, 6, 6))
    assert fused != [op for op, _, _ in rows] == ["bn_relu"] * 2  # the last pass holds batch norm, sum and ReLU


@HOLDERS
def test_averaged_models(holder):
    """SWA with update_bn (resets statistics, momentum None) and EMA (swaps values): as eager, step by step."""
    results = []
    data = [torch.randn(4, 3, 32, 32) for _ in range(3)]
    for m in fused_and_eager(holder):
        m.train()
        swa, ema = AveragedModel(m), AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        optimizer = torch.optim.SGD(m.parameters(), lr=0.01)
        for x in data:
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
            swa.update_parameters(m)
            ema.update_parameters(m)
        update_bn(data, swa)
        assert swa.module.bn1.momentum == 0.1 and swa.module.bn1.num_batches_tracked == 3
        results.append([*swa.module.state_dict().values(), *ema.module.state_dict().values()])
        results[-1].append(swa.eval()(data[0]))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=2e-3, atol=2e-4)


@HOLDERS
def test_optimizer_state_outlives_the_conversion(holder):
    """fused=True steps do not bump version counters: nothing may depend on those."""
    results = []
    for m in fused_and_eager(holder):
        optimizer = torch.optim.Adam(m.parameters(), lr=1e-3, fused=True)
        for step in range(3):
            optimizer.zero_grad()
            m(torch.randn(X, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
        results.append([p.detach() for p in m.parameters()])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-2, atol=1e-3)


@HOLDERS
def test_distributed_data_parallel(holder):
    """One process of gloo: the gradients pass DDP's hooks, buffers are broadcast, unused parameters are found."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    with process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1):
        results = []
        for m in fused_and_eager(holder):
            ddp = nn.parallel.DistributedDataParallel(m.train(), gradient_as_bucket_view=True)
            for seed in range(2):
                ddp(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
            results.append(m)
        for (name, p), q in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
            assert (p.grad - q.grad).norm() <= 5e-3 * q.grad.norm() + 1e-6, name
            assert p.grad.stride() == p.stride()
        if holder != "ours":
            ddp = nn.parallel.DistributedDataParallel(fused_and_eager(holder)[1])
            assert resnet_fused.convert(ddp, strict=True) is ddp and ddp(torch.randn(X)).shape == (2, 5)


@HOLDERS
def test_function_transforms(holder):
    model, reference = fused_and_eager(holder)
    x, state = torch.randn(X), {k: v * 1.1 for k, v in model.named_parameters()}
    results = []
    for m in (model, reference):

        def loss(params, image, m=m):
            return torch.func.functional_call(m, params, (image[None],)).square().sum()

        called = torch.func.functional_call(m, state, (x,))
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
        _, tangent = torch.func.jvp(m, (x,), (torch.ones_like(x),))
        batched = torch.func.vmap(m)(torch.stack([x, 2 * x]))
        results.append([called, tangent, batched, *per_sample.values()])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)


@HOLDERS
def test_per_sample_gradients_in_training_are_refused_as_in_eager(holder):
    errors = []
    for m in fused_and_eager(holder):
        m.train()
        state = dict(m.named_parameters())

        def loss(params, image, m=m):
            return torch.func.functional_call(m, params, (image[None],)).square().sum()

        with pytest.raises(RuntimeError) as caught:
            torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, torch.randn(X))
        errors.append(str(caught.value)[:120])
    assert (errors[0] == errors[1] and "running_mean" in errors[0]) or "in-place" in errors[0]


@HOLDERS
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(holder, reentrant):
    results = []
    for m in fused_and_eager(holder):
        m.train()
        h = m.maxpool(m.bn1(m.conv1(torch.randn(X, generator=torch.Generator().manual_seed(0)))))
        out = torch.utils.checkpoint.checkpoint(m.layer2, m.layer1(h), use_reentrant=reentrant)
        out.square().mean().backward()
        results.append(
            [m.layer2[0].conv1.weight.grad, m.layer2[0].bn1.running_var, m.layer2[0].bn1.num_batches_tracked]
        )
    assert results[0][-1] == results[1][-1] == 2
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)
