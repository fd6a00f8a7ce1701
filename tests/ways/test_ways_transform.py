"""Tracers, exporters, function transforms, and the backward pass in other shapes."""

import torch
from foreign import torchvision
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from ways import LIVE, Ways

import resnet_fused

ways = Ways()
TRANSFORM = "inside a function transform"
WITH_GRADIENTS = ("gradients", "training")
ONE = ("evaluation",)
KINDS = tuple(kind for kind in LIVE if kind != "converted late")


@ways(kinds=KINDS, why="Proxy", but={"sequence": {"why": None}})
def symbolic_trace(net):
    graph = fx.symbolic_trace(net.ready())
    net.step(graph)


@ways(kinds=KINDS, why="Proxy", needs=("block",))
def a_feature_extractor_of_torchvision(net):
    extractor = torchvision.models.feature_extraction.create_feature_extractor(net.ready(), [net.path("layer")])
    net.step(lambda x: extractor(x)[net.path("layer")])


@ways(kinds=KINDS, slow=True, modes=("evaluation", "training"))
def export(net):
    net.ready()
    with torch.no_grad():
        program = torch.export.export(net.model, (net.x.detach(),))
        return [program.module()(net.another)]


@ways(kinds=KINDS, slow=True, modes=ONE)
def export_in_torchs_operators(net):
    net.ready()
    with torch.no_grad():
        program = torch.export.export(net.model, (net.x.detach(),))
        return [program.run_decompositions(resnet_fused.decompositions()).module()(net.another)]


@ways(kinds=KINDS, why="torch.jit.trace", modes=("evaluation", "gradients"))
def jit_trace(net):
    traced = torch.jit.trace(net.ready(), net.x.detach(), check_trace=False)
    net.step(traced)


@ways(kinds=KINDS, modes=("evaluation", "training"))
def make_fx_of_the_network(net):
    model = net.ready()
    with torch.no_grad():
        graph = make_fx(lambda x: model(x))(net.x.detach())
        return [graph(net.another)]


@ways(kinds=KINDS, why="", modes=("evaluation", "training"), slow=True)
def make_fx_with_fake_tensors(net):
    model = net.ready()
    with torch.no_grad():
        graph = make_fx(lambda x: model(x), tracing_mode="fake", _allow_non_fake_inputs=True)(net.x.detach())
        return [graph(net.another)]


@ways(kinds=KINDS, why=TRANSFORM)
def vmap(net):
    return [torch.func.vmap(net.ready())(torch.stack([net.x, net.another]))]


@ways(kinds=KINDS, why=TRANSFORM)
def jvp(net):
    return list(torch.func.jvp(net.ready(), (net.x,), (net.another,)))


@ways(kinds=KINDS, why=TRANSFORM)
def vjp(net):
    out, back = torch.func.vjp(net.ready(), net.x)
    return [out, *back(net.grad)]


@ways(kinds=KINDS, why=TRANSFORM)
def jacrev(net):
    return [torch.func.jacrev(net.ready())(net.x)]


@ways(kinds=KINDS, why=TRANSFORM, modes=ONE)
def jacfwd(net):
    x = net.x[:, :, :8, :8]
    return [
        torch.func.jacfwd(lambda t: net.model(torch.nn.functional.pad(t, (0, 8, 0, 8))))(
            x[:1, :1, :4, :4].expand(-1, 3, -1, -1)
        )
    ]


@ways(kinds=KINDS, why=TRANSFORM)
def per_sample_gradients(net):
    model = net.ready()

    def loss(params, image):
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    params = {name: p.detach() for name, p in model.named_parameters()}
    return list(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, net.x).values())


@ways(kinds=KINDS, why=TRANSFORM, modes=ONE)
def linearize(net):
    out, linear = torch.func.linearize(net.ready(), net.x)
    return [out, linear(net.another)]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def gradients_in_a_batch(net):
    """is_grads_batched"""
    out = net.ready()(net.x)
    vectors = torch.stack([net.grad, net.grad * 2, net.grad.flip(0)])
    wanted = [net.x, *net.model.parameters()]
    return [out, *torch.autograd.grad(out, wanted, vectors, is_grads_batched=True)]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_vectorized_jacobian(net):
    net.ready()
    return [torch.autograd.functional.jacobian(net.model, net.x.detach(), vectorize=True)]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_jacobian(net):
    net.ready()
    return [torch.autograd.functional.jacobian(net.model, net.x.detach())]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_gradient_penalty(net):
    out = net.ready()(net.x)
    (grad,) = torch.autograd.grad(out.square().sum(), net.x, create_graph=True)
    (grad.square().sum() * 0.01 + out.sum()).backward()
    return [out, grad]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_product_with_the_hessian(net):
    out = net.ready()(net.x)
    p = net.part("norm").weight
    (grad,) = torch.autograd.grad(out.square().sum(), p, create_graph=True)
    return [*torch.autograd.grad(grad.sum(), p)]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def one_graph_twice(net):
    out = net.ready()(net.x)
    out.backward(net.grad, retain_graph=True)
    out.backward(net.grad)


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def one_graph_twice_without_keeping_it(net):
    out = net.ready()(net.x)
    out.backward(net.grad)
    out.backward(net.grad)


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def two_forward_passes_then_one_backward_pass(net):
    model = net.ready()
    (model(net.x).square().sum() + model(net.another).sum()).backward()


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def gradients_of_one_weight_alone(net):
    net.ready()(net.x).backward(net.grad, inputs=[net.part("conv").weight])


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def gradients_of_the_image_alone(net):
    return [*torch.autograd.grad(net.ready()(net.x), net.x, net.grad)]


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def the_output_written_before_the_backward_pass(net):
    out = net.ready()(net.x)
    out.mul_(2)
    out.backward(net.grad)
    return [out]


@ways(kinds=KINDS, modes=WITH_GRADIENTS, needs=("layer",))
def a_map_written_after_the_forward_pass(net):
    """Autograd refuses it in eager, since the map was saved."""
    kept = []
    net.ready()
    net.part("layer").register_forward_hook(lambda m, args, out: kept.append(out))
    out = net.model(net.x)
    kept[0].detach().add_(1)
    out.backward(net.grad)


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_weight_written_between_forward_and_backward(net):
    out = net.ready()(net.x)
    with torch.no_grad():
        net.part("conv").weight.add_(0.1)
    out.backward(net.grad)


@ways(kinds=KINDS, modes=WITH_GRADIENTS)
def a_gradient_with_stride_zero(net):
    net.ready()(net.x).sum().backward()


@ways(kinds=KINDS, modes=("evaluation",), why="forward-mode")
def forward_mode_by_hand(net):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(net.x, net.another)
        return list(torch.autograd.forward_ad.unpack_dual(net.ready()(dual)))


@ways(kinds=KINDS, modes=ONE)
def the_image_is_not_written(net):
    before = net.x.clone()
    net.step()
    net.see(torch.equal(before, net.x))


test_transform = ways.test()
