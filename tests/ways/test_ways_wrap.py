"""Networks inside of something, or with something inside: wrappers, parametrizations, shared modules, averages."""

import copy
import warnings

import torch
from edits import LoRA, lightly, spectral
from torch import nn
from torch.nn.utils import fusion, parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from ways import LIVE, Ways

from resnet_fused.commands.train.group import process_group

ways = Ways()
PARAMETRIZED = "is a Parametrized"
WITH_GRADIENTS = ("gradients", "training")


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def wrap(net, role, make):
    net.replace(role, make(net.part(role)))


@ways(kinds=LIVE)
def a_wrapper_around_the_network(net):
    net.step(Wrapper(net.ready()))


@ways(needs=("block",))
def a_wrapper_around_a_block(net):
    wrap(net, "block", Wrapper)
    net.step()


@ways(needs=("layer",))
def a_wrapper_around_a_layer(net):
    wrap(net, "layer", Wrapper)
    net.step()


@ways(kinds=LIVE)
def data_parallel_without_a_gpu(net):
    net.step(nn.DataParallel(net.ready()))


@ways(kinds=LIVE, needs=("layer",))
def a_slice_of_the_children(net):
    """As feature extractors do it."""
    net.ready()
    features = nn.Sequential(*list(net.model.children())[: 2 if hasattr(net.model, "layer") else 6])
    net.step(features)


@ways(kinds=LIVE, needs=("layer",))
def a_block_alone(net):
    channels = net.part("strided").in_channels
    x = torch.randn(2, channels, 8, 8, dtype=net.x.dtype, generator=torch.Generator().manual_seed(3))
    net.ready()
    net.step(net.part("block"), x.requires_grad_(net.mode != "evaluation"))
    net.see(x.grad)


@ways(why=PARAMETRIZED, needs=("conv",))
def weight_norm(net):
    parametrizations.weight_norm(net.part("conv"))
    net.step()


@ways(why=PARAMETRIZED, needs=("conv",))
def spectral_norm(net):
    spectral(net.part("conv"))
    net.step()


@ways(why="carries a hook", needs=("conv",))
def the_old_weight_norm(net):
    lightly(nn.utils.weight_norm, net.part("conv"))
    net.step()


class Scaled(nn.Module):
    def forward(self, t):
        return t * 1.25


@ways(why=PARAMETRIZED, needs=("norm",))
def a_parametrized_norm(net):
    parametrize.register_parametrization(net.part("norm"), "weight", Scaled())
    net.step()


@ways(why=PARAMETRIZED, needs=("conv",))
def parametrizations_cached(net):
    parametrize.register_parametrization(net.part("conv"), "weight", Scaled())
    with parametrize.cached():
        net.step()


@ways(needs=("conv",))
def parametrized_and_removed(net):
    parametrize.register_parametrization(net.part("conv"), "weight", Scaled())
    parametrize.remove_parametrizations(net.part("conv"), "weight")
    net.step()


@ways(why="has a bias|Identity", needs=("stem",), modes=("evaluation", "gradients"))
def folded_by_torch(net):
    """fuse_conv_bn_eval"""
    conv = fusion.fuse_conv_bn_eval(net.part("strided").eval(), net.part("norm").eval())
    net.replace("strided", conv), net.replace("norm", nn.Identity())
    net.step()


@ways(why="LoRA", needs=("conv",))
def lora_around_a_convolution(net):
    torch.manual_seed(5)
    lora = LoRA(net.part("conv")).to(net.x.dtype)
    net.replace("conv", lora)
    net.step()


@ways(needs=("conv",))
def a_weight_shared_by_two_convolutions(net):
    conv = net.part("conv")
    other = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
    other.weight = conv.weight
    net.replace("conv", other)
    net.model.shared = other
    net.step()


@ways(needs=("layer",))
def a_block_twice(net):
    """The last block of the layer, with another one of the same object behind it."""
    layer = net.part("layer")
    layer.append(same := copy.deepcopy(layer[-1]))
    c = net.part("conv").out_channels
    strided = same.get_submodule(net.path("strided").removeprefix(net.path("block") + "."))
    strided.stride, strided.weight, strided.in_channels = (1, 1), net.part("conv").weight, c
    short = same.get_submodule(net.path("shortcut").removeprefix(net.path("block") + "."))
    projection = next(m for m in short.modules() if isinstance(m, nn.Conv2d))
    projection.stride, projection.weight = (1, 1), nn.Parameter(torch.eye(c, dtype=net.x.dtype)[:, :, None, None] * 0.5)
    projection.in_channels = c
    layer.append(same)
    net.step()


@ways(
    needs=("norm",), kinds=("ours", "torchvision", "converted late", "timm"), why="twice", but={"ours": {"why": None}}
)
def one_norm_in_two_places(net):
    net.part("block").bn2 = net.part("block").bn1
    net.step()


@ways(kinds=LIVE, needs=("layer",), modes=WITH_GRADIENTS)
def checkpoint_of_a_layer(net):
    wrap(net, "layer", lambda layer: Checkpointed(layer, False))
    net.step()


@ways(kinds=LIVE, needs=("block",), modes=WITH_GRADIENTS)
def reentrant_checkpoint_of_a_block(net):
    wrap(net, "block", lambda block: Checkpointed(block, True))
    net.step()


class Checkpointed(Wrapper):
    def __init__(self, module, reentrant):
        super().__init__(module)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.module, x, use_reentrant=self.reentrant)


@ways(kinds=LIVE, modes=WITH_GRADIENTS)
def checkpoint_of_the_network(net):
    model = net.ready()
    net.step(lambda x: checkpoint(model, x, use_reentrant=False))


@ways(kinds=LIVE, modes=WITH_GRADIENTS)
def checkpoint_sequential_of_the_children(net):
    children = [m for m in net.ready().children() if not isinstance(m, nn.Linear)]
    net.step(lambda x: checkpoint_sequential(nn.Sequential(*children), 2, x, use_reentrant=False))


@ways(kinds=LIVE)
def an_average_of_the_weights(net):
    net.ready()
    ema = AveragedModel(net.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    net.step()
    with torch.no_grad():
        for p in net.model.parameters():
            p.mul_(1.1)
    ema.update_parameters(net.model)
    net.x.grad = None
    net.model = ema
    net.step()


@ways(kinds=LIVE)
def an_average_with_statistics_of_its_own(net):
    net.ready()
    swa = AveragedModel(net.model)
    swa.update_parameters(net.model)
    update_bn([net.x.detach(), net.another], swa)
    net.model = swa
    net.step()


@ways(kinds=LIVE)
def functional_call_with_other_weights(net):
    model = net.ready()
    state = {name: (1.1 * t).detach() if t.is_floating_point() else t.clone() for name, t in model.state_dict().items()}
    net.step(lambda x: torch.func.functional_call(model, state, (x,)))
    net.see(*state.values())


@ways(kinds=LIVE, why="function transform", modes=("evaluation",))
def an_ensemble_by_vmap(net):
    models = [net.ready(), copy.deepcopy(net.model)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.05)
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0])
    out = torch.func.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (net.x,)))(params, buffers)
    return [out.detach()]


@ways(kinds=LIVE, slow=True)
def compiled_by_the_eager_backend(net):
    torch._dynamo.reset()
    net.step(torch.compile(net.ready(), backend="eager"))


@ways(kinds=LIVE, slow=True)
def compiled_as_one_graph(net):
    torch._dynamo.reset()
    net.step(torch.compile(net.ready(), fullgraph=True, backend="aot_eager"))


@ways(kinds=LIVE, modes=WITH_GRADIENTS, slow=True)
def distributed_data_parallel(net):
    """One process, gloo."""
    net.ready().requires_grad_()
    with process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1):
        ddp = nn.parallel.DistributedDataParallel(net.model, gradient_as_bucket_view=True)
        net.step(ddp)
        for p in net.model.parameters():
            p.grad = p.grad.clone()


@ways(kinds=LIVE, slow=True, needs=("block",))
def a_compiled_block(net):
    torch._dynamo.reset()
    net.ready()
    net.part("block").compile(backend="eager")
    net.step()


@ways(kinds=LIVE, needs=("conv",), why=PARAMETRIZED, modes=WITH_GRADIENTS)
def an_orthogonal_convolution(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parametrizations.orthogonal(net.part("conv"), orthogonal_map="cayley")
    net.step()


test_wrap = ways.test()
