"""What every process of tests/outside/test_distributed.py does; each check returns None or raises."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from training_cases import asks_the_device, inside

import resnet_fused
from resnet_fused import dispatch
from resnet_fused.measure.oracle import by_modules, with_lively_norms


def network():
    torch.manual_seed(0)
    return with_lively_norms(resnet_fused.ResNet(resnet_fused.BasicBlock, [1, 1, 1, 1], num_classes=5)).train()


def batches(sizes, hw=40):
    torch.manual_seed(1)
    return torch.randn(sum(sizes), 3, hw, hw).split(sizes)


def _close(ours, expected, what, rtol=2e-4):
    assert (ours - expected).norm() <= rtol * expected.norm() + 1e-6, (
        f"{what}: {(ours - expected).norm()} of {expected.norm()}"
    )


def _fused(rows):
    assert {"conv_stats", "bn_relu", "bn_add_bn_relu"} <= {op for op, _, _ in rows}


def _synchronised(sizes, kind=lambda model: model):
    """nn.SyncBatchNorm over processes is nn.BatchNorm2d over the batch of all: outputs, gradients, running statistics."""
    rank = dist.get_rank()
    whole = by_modules(network())
    xs = batches(sizes)
    everything = torch.cat(xs).requires_grad_()
    expected = whole(everything)
    expected.square().sum().backward()

    model = kind(nn.SyncBatchNorm.convert_sync_batchnorm(network()))
    x = xs[rank].clone().requires_grad_()
    with dispatch.record() as rows:
        out = model(x)
    _fused(rows)
    out.square().sum().backward()
    first = sum(sizes[:rank])
    if sizes[rank]:
        _close(out.detach(), expected.detach()[first : first + sizes[rank]], "logits")
        _close(x.grad, everything.grad[first : first + sizes[rank]], "gradient of x", 2e-3)
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        dist.all_reduce(p.grad)
        _close(p.grad, q.grad, name, 2e-3)
    for (name, b), c in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        _close(b.double(), c[1].double(), name)


def sync_bn_of_uneven_batches():
    _synchronised([3, 5, 2, 4][: dist.get_world_size()])


def sync_bn_with_an_empty_batch():
    _synchronised([0, 5, 2, 1][: dist.get_world_size()])


def sync_bn_memory_efficient():
    def kind(model):
        model.memory_efficient = True
        return model

    _synchronised([2, 3, 1, 1][: dist.get_world_size()], kind)


def sync_bn_of_one_value_per_process():
    """One image of one pixel each: too few alone, enough together."""
    block = resnet_fused.BasicBlock(4, 4).train()
    block(torch.randn(2, 4, 3, 3))  # warm
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    out = synced(torch.full((1, 4, 1, 1), float(dist.get_rank())))
    assert out.isfinite().all() and synced.bn1.running_var.isfinite().all()


def sync_bn_evaluates_without_collectives():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network()).eval()
    if dist.get_rank() == 0:  # the others do not take part
        x = torch.randn(1, 3, 40, 40)
        with torch.no_grad():
            torch.testing.assert_close(model(x), by_modules(network()).eval()(x), rtol=1e-4, atol=1e-4)


def sync_bn_asks_the_device_nothing():
    """The collectives included; one launch merges what they bring."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(resnet_fused.BasicBlock(4, 4).train())
    x = torch.randn(2 + dist.get_rank(), 4, 5, 5)
    with pytest.MonkeyPatch.context() as patch, inside(patch, asks_the_device) as names:
        model(x).square().sum().backward()
    assert names.count("resnet_fused_native.bn_stats_merge.default") == 2
    collectives = [name for name in names if name.startswith("c10d")]
    assert len(collectives) == 4, collectives  # of each batch norm one forward and one backward


def sync_bn_refuses_the_double_backward():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(resnet_fused.BasicBlock(4, 4).train())
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    try:
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    except RuntimeError as error:
        assert "over several processes" in str(error)
    else:
        raise AssertionError("no error")


def sync_bn_compiles():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    reference = copy.deepcopy(model)
    x = batches([3] * dist.get_world_size())[dist.get_rank()]
    expected = reference(x)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    _close(out.detach(), expected.detach(), "logits", 1e-3)
    out.square().sum().backward()
    expected.square().sum().backward()
    _close(model.conv1.weight.grad, reference.conv1.weight.grad, "gradient", 1e-3)


def _mean_gradients(sizes):
    """Gradients of every parameter, averaged over the processes, by torch's own modules."""
    rank = dist.get_rank()
    reference = by_modules(network())
    reference(batches(sizes)[rank]).square().mean().backward()
    grads = {}
    for name, p in reference.named_parameters():
        dist.all_reduce(p.grad)
        grads[name] = p.grad / dist.get_world_size()
    return grads


def _data_parallel(**kwargs):
    sizes = [3, 4, 3, 2][: dist.get_world_size()]
    expected = _mean_gradients(sizes)
    x = batches(sizes)[dist.get_rank()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as: gradient strides do not match bucket view strides
        model = DistributedDataParallel(network(), **kwargs)
        for _ in range(3):  # static_graph delays its reductions after the first
            model.zero_grad()
            with dispatch.record() as rows:
                out = model(x)
            out.square().mean().backward()
    _fused(rows)
    for name, p in model.module.named_parameters():
        assert p.grad.stride() == p.stride(), name
        _close(p.grad, expected[name], name, 2e-3)


def ddp():
    _data_parallel()


def ddp_gradient_as_bucket_view():
    _data_parallel(gradient_as_bucket_view=True)


def ddp_static_graph():
    _data_parallel(static_graph=True)


def ddp_two_forwards_and_no_sync():
    x, y = batches([3, 3])
    model = DistributedDataParallel(network())
    with model.no_sync():
        model(x).square().mean().backward()
    (model(x).square().mean() + model(y).square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def fsdp2():
    sizes = [3, 4, 3, 2][: dist.get_world_size()]
    expected = _mean_gradients(sizes)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = network()
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with dispatch.record() as rows:
        out = model(batches(sizes)[dist.get_rank()])
    out.square().mean().backward()
    _fused(rows)
    for name, p in model.named_parameters():
        _close(p.grad.full_tensor(), expected[name], name, 2e-3)
    optimizer.step()
    assert model(batches(sizes)[dist.get_rank()]).isfinite().all()


CHECKS = {
    f.__name__: f
    for f in (
        sync_bn_of_uneven_batches, sync_bn_with_an_empty_batch, sync_bn_memory_efficient, sync_bn_of_one_value_per_process,
        sync_bn_evaluates_without_collectives, sync_bn_asks_the_device_nothing, sync_bn_refuses_the_double_backward,
        sync_bn_compiles,
        ddp, ddp_gradient_as_bucket_view, ddp_static_graph, ddp_two_forwards_and_no_sync, fsdp2,
    )
}  # fmt: skip
