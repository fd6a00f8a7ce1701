"""Copies of a network, checkpoints, and several threads."""

import copy
import io
import pickle
import threading

import torch
from torch import nn
from ways import LIVE, Ways

import resnet_fused

ways = Ways()
WITH_GRADIENTS = ("gradients", "training")


def copied(name, make, **fields):
    """Adds the way in which a copy is used, made before or after the network was."""

    def before(net):
        net.ready()
        net.model = make(net.model)
        net.step()

    def after(net):
        net.step()
        net.model.zero_grad()
        net.model = make(net.model)
        net.step()

    ways(before, name=name, **fields)
    ways(after, name=f"{name} of a network in use", **fields)


def saved_whole(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def loaded(**how):
    def make(model):
        buffer = io.BytesIO()
        torch.save({k: v * 0.9 if v.is_floating_point() else v for k, v in model.state_dict().items()}, buffer)
        buffer.seek(0)
        model.load_state_dict(torch.load(buffer), **how)
        return model

    return make


def by_meta(model):
    state = model.state_dict()
    model = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def by_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 0.9, model.parameters())
    return model


copied("deepcopy", copy.deepcopy)
copied("copy.copy", copy.copy)
copied("pickle", lambda model: pickle.loads(pickle.dumps(model)))
copied("pickle, protocol 2", lambda model: pickle.loads(pickle.dumps(model, 2)), kinds=LIVE)
copied("saved whole", saved_whole)
copied("state dict", loaded())
copied("state dict by assignment", loaded(assign=True))
copied("share_memory", lambda model: model.share_memory())
copied("by the meta device", by_meta)
copied("by one vector", by_vector)
copied(
    "to() and back", lambda model: model.double().float() if next(model.parameters()).dtype == torch.float32 else model
)
copied(
    "unconverted", resnet_fused.unconvert, kinds=("torchvision", "timm", "somebody's", "sequence"), why="not converted"
)
copied("converted twice", lambda model: resnet_fused.convert(model), kinds=LIVE)
copied("unconverted and converted", lambda model: resnet_fused.convert(resnet_fused.unconvert(model)), kinds=LIVE)


@ways
def a_state_dict_with_keys_missing_and_too_many(net):
    state = net.model.state_dict()
    state["more"] = state.pop(f"{net.path('norm')}.weight") * 0 + 2
    net.see(str(net.model.load_state_dict(state, strict=False)))
    net.step()


@ways
def names_and_order(net):
    net.see(*(name for name, _ in net.model.named_modules()))
    net.see(*(name for name, _ in net.model.named_buffers()))
    net.see(sum(p.numel() for p in net.model.parameters()))
    net.step()


@ways
def a_state_dict_kept_over_a_step(net):
    """It shares memory with the network, as in eager."""
    state = net.model.state_dict()
    net.step()
    net.see(*state.values())


@ways
def apply_of_a_function_to_all(net):
    net.model.apply(lambda m: nn.init.constant_(m.weight, 0.3) if isinstance(m, nn.BatchNorm2d) else None)
    net.step()


@ways(kinds=LIVE)
def modes_back_and_forth(net):
    for mode in (True, False, True, net.mode == "training"):
        net.model.train(mode)
        net.step()


@ways(modes=WITH_GRADIENTS)
def five_steps_of_an_optimizer(net):
    """At a rate at which rounding errors do not grow."""
    optimizer = torch.optim.SGD(net.ready().parameters(), lr=0.0005, momentum=0.9, weight_decay=1e-4, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        net.step()
        optimizer.step()


@ways(modes=WITH_GRADIENTS)
def gradients_clipped_and_accumulated(net):
    net.step(), net.step(x=net.another)
    net.see(nn.utils.clip_grad_norm_(net.model.parameters(), 0.1))


@ways(kinds=LIVE, modes=("evaluation",))
def four_threads_evaluate(net):
    model = net.ready()
    model(net.x)
    outs, errors = [None] * 4, []

    def run(i):
        try:
            with torch.no_grad():
                for _ in range(3):
                    outs[i] = model(net.x if i % 2 else net.another)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    if errors:
        raise errors[0]
    net.step()
    return outs


@ways(kinds=LIVE, modes=("training",))
def one_thread_trains_and_another_evaluates_a_copy(net):
    other = copy.deepcopy(net.ready()).eval()
    outs = []

    def evaluate():
        with torch.no_grad():
            outs.extend(other(net.another) for _ in range(3))

    thread = threading.Thread(target=evaluate)
    thread.start()
    for _ in range(2):
        net.model(net.x).backward(net.grad)
    thread.join()
    return outs


@ways(kinds=LIVE, modes=WITH_GRADIENTS)
def the_backward_pass_in_another_thread(net):
    out = net.ready()(net.x)
    thread = threading.Thread(target=lambda: out.backward(net.grad))
    thread.start(), thread.join()
    return [out]


@ways(kinds=LIVE, modes=("gradients",))
def threads_of_different_grad_modes(net):
    model, found = net.ready(), {}

    def run(enabled):
        with torch.set_grad_enabled(enabled):
            found[enabled] = model(net.x)

    threads = [threading.Thread(target=run, args=(enabled,)) for enabled in (True, False)]
    [t.start() for t in threads], [t.join() for t in threads]
    found[True].backward(net.grad)
    return [found[True], found[False]]


test_copy = ways.test()
