"""Hooks: on leaves, blocks, layers and the network; that look, that change, that stay, that go."""

from torch import nn
from ways import LIVE, Ways

ways = Ways()
LEAVES, OUTER = ("stem", "conv", "norm", "relu"), ("block", "layer", "network")
HOOKED = "carries a hook"
WITH_GRADIENTS = ("gradients", "training")


def hook(kind, what, roles, make, **fields):
    """Adds, for every role, the way in which its module gets the hook make(net)."""
    for role in roles:

        def act(net, role=role):
            handle = getattr(net.part(role), f"register_{kind}")(make(net))
            net.step()
            handle.remove()
            net.step()

        why = HOOKED if role in LEAVES else None
        # An in-place ReLU cannot write into the view that a backward hook makes.
        ways(act, name=f"{kind} that {what}, {role}", **{"why": why, "needs": (role,), **fields})


hook("forward_hook", "looks", (*LEAVES, *OUTER), lambda net: lambda m, args, out: net.see(out), kinds=LIVE)
hook(
    "forward_hook", "copies", LEAVES, lambda net: lambda m, args, out: net.see(args[0].clone(), out.clone()), kinds=LIVE
)
hook("forward_hook", "changes the value", (*LEAVES, *OUTER), lambda net: lambda m, args, out: out * 1.25)
hook(
    "forward_hook",
    "writes into the value",
    (*LEAVES, *OUTER),
    lambda net: lambda m, args, out: out.mul_(1.25),
)
hook(
    "forward_hook",
    "makes a view",
    OUTER,
    lambda net: lambda m, args, out: net.see(out.view(out.shape[0], -1)),
    kinds=LIVE,
)
hook("forward_pre_hook", "looks", (*LEAVES, *OUTER), lambda net: lambda m, args: net.see(*args), kinds=LIVE)
hook(
    "forward_pre_hook",
    "makes a view",
    ("block", "layer", "fc"),
    lambda net: lambda m, args: net.see(args[0].view(-1)),
    kinds=LIVE,
)
hook(
    "forward_pre_hook",
    "changes the value",
    (*LEAVES, *OUTER),
    lambda net: lambda m, args: (args[0] * 1.25,),
)
hook(
    "full_backward_hook", "looks", (*LEAVES, *OUTER), lambda net: lambda m, grads, out: net.see(*grads, *out),
    modes=WITH_GRADIENTS,
)  # fmt: skip
hook(
    "full_backward_hook", "changes the gradient", ("conv", "block", "network"),
    lambda net: lambda m, grads, out: tuple(None if g is None else 2 * g for g in grads), modes=WITH_GRADIENTS,
)  # fmt: skip
hook(
    "full_backward_pre_hook", "changes the gradient", ("conv", "norm", "block", "layer", "network"),
    lambda net: lambda m, grads: tuple(2 * g for g in grads), modes=WITH_GRADIENTS,
)  # fmt: skip


def stores(m, args, out):
    m.kept = out


@ways(needs=("block",))
def a_hook_that_stores_on_the_block(net):
    net.part("block").register_forward_hook(stores)
    net.step(), net.step()
    net.see(net.part("block").kept)


@ways(kinds=LIVE)
def a_hook_that_stores_on_the_network(net):
    net.model.register_forward_hook(stores)
    net.step(), net.step()
    net.see(net.model.kept)


@ways(needs=("block",), modes=WITH_GRADIENTS)
def a_hook_that_asks_for_the_gradient_of_a_map(net):
    def keep(m, args, out):
        if out.requires_grad:
            out.retain_grad()
            kept.append(out)

    kept = []
    net.part("block").register_forward_hook(keep)
    net.step()
    net.see(kept[-1].grad)


@ways(needs=("block",), modes=WITH_GRADIENTS)
def a_hook_that_hooks_the_map(net):
    def watch(out):
        if out.requires_grad:
            out.register_hook(lambda g: net.see(g))

    net.part("block").register_forward_hook(lambda m, args, out: watch(out))
    net.step()


@ways(needs=("block",), kinds=LIVE)
def a_hook_that_reads_running_statistics(net):
    """While the forward pass is on its way."""
    net.part("block").register_forward_hook(lambda *args: net.see(net.part("norm").running_mean.clone()))
    net.step()


@ways(needs=("layer",), kinds=LIVE, modes=("training",))
def a_hook_that_leaves_one_value_per_channel(net):
    net.part("layer").register_forward_pre_hook(lambda m, args: (args[0][:1, :, :1, :1],))
    net.step()


@ways(needs=("block",), kinds=LIVE)
def a_hook_that_raises(net):
    def fail(*args):
        raise KeyError("the hook's own")

    net.part("block").register_forward_hook(fail)
    net.step()


@ways(why="global", kinds=LIVE)
def a_global_forward_hook(net):
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, args, out: net.see(out.clone()) if type(m) in (nn.Conv2d, nn.BatchNorm2d) else None
    )
    try:
        net.step()
    finally:
        handle.remove()


@ways(why="global")
def a_global_forward_hook_that_changes_values(net):
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, args, out: out * 1.25 if type(m) is nn.Conv2d else None
    )
    try:
        net.step()
    finally:
        handle.remove()


@ways(why="global", kinds=LIVE)
def a_global_pre_hook(net):
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: net.see(args[0].clone()) if type(m) in (nn.Conv2d, nn.BatchNorm2d) else None
    )
    try:
        net.step()
    finally:
        handle.remove()


@ways(why="global", modes=WITH_GRADIENTS)
def a_global_backward_hook(net):
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda m, grads, out: net.see(*out) if type(m) is nn.Linear else None
    )
    try:
        net.step()
    finally:
        handle.remove()


@ways(kinds=LIVE)
def hooks_of_the_state_dict(net):
    net.model._register_state_dict_hook(lambda m, state, prefix, local: net.see(sorted(state)))
    net.model.register_load_state_dict_post_hook(lambda m, keys: net.see(str(keys)))
    net.model.load_state_dict(net.model.state_dict())
    net.step()


@ways(modes=WITH_GRADIENTS)
def a_hook_of_every_parameter(net):
    """The order in which gradients arrive belongs to torch; their values do not."""
    found = {}
    for name, p in net.model.named_parameters():
        p.register_hook(lambda g, name=name: found.__setitem__(name, g.clone()))
    net.step()
    net.see(*(found[name] for name in sorted(found)))


@ways(modes=WITH_GRADIENTS)
def an_optimizer_in_the_backward_pass(net):
    for p in net.model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: (p.data.add_(p.grad, alpha=-0.001), setattr(p, "grad", None)))
    net.step(), net.step()


@ways(needs=("block",), kinds=LIVE)
def hooks_with_keywords_and_in_another_order(net):
    block = net.part("block")
    block.register_forward_hook(lambda m, args, kwargs, out: net.see(len(kwargs)), with_kwargs=True)
    block.register_forward_hook(lambda m, args, out: out * 1.25, prepend=True)
    block.register_forward_hook(lambda m, args, out: net.see(out), always_call=True)
    net.step()


test_hook = ways.test()
