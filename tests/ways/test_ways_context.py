"""Contexts around a network, and inside of it: autocast, grad modes, hooks of saved tensors, modes of torch functions."""

import contextlib
import warnings

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from ways import LIVE, Ways

ways = Ways()
WITH_GRADIENTS = ("gradients", "training")


def inside(name, make, **fields):
    """Adds the way in which the network is used in the context make(net)."""

    def act(net):
        with make(net):
            net.step()
        net.step()

    ways(act, name=name, **fields)


def around_a_part(name, make, role="block", **fields):
    """Adds the way in which the module of a role runs in a context that its own forward enters."""

    def act(net):
        part = net.part(role)
        real = part.forward

        def forward(*args):
            with make(net):
                return real(*args)

        part.forward = forward
        net.step()

    fields = {"needs": (role,), "kinds": LIVE, "but": {"converted late": {"why": ON_THE_INSTANCE}}, **fields}
    ways(act, name=f"{name} in the forward of one {role}", **fields)


def autocast(net, enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled and not net.exact)


class Counts(TorchFunctionMode):
    """Looks at every function and changes nothing."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Scales(TorchFunctionMode):
    """Changes what functions of torch compute."""

    def __init__(self, *functions):
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 1.25 if func in self.functions else out


class Looks(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def not_deterministic():
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


ON_THE_INSTANCE = "forward was replaced on the instance"  # such a module is not converted
LOW = {"low": torch.bfloat16}
inside("autocast", autocast, **LOW, kinds=LIVE)
around_a_part("autocast off", lambda net: torch.autocast("cpu", enabled=False))
around_a_part("autocast", autocast, **LOW)
around_a_part("autocast", autocast, "network", **LOW)
around_a_part("no_grad", lambda net: torch.no_grad())
around_a_part("no_grad", lambda net: torch.no_grad(), "layer")
around_a_part("enable_grad", lambda net: torch.enable_grad())
around_a_part("inference_mode", lambda net: torch.inference_mode(), modes=("evaluation",))
around_a_part(
    "saved_tensors_hooks",
    lambda net: torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2),
    modes=WITH_GRADIENTS,
)


@ways(**LOW, kinds=LIVE, needs=("block",), but={"converted late": {"why": ON_THE_INSTANCE}})
def autocast_with_a_block_in_float32(net):
    block = net.part("block")
    real = block.forward

    def forward(x, *args):
        with torch.autocast("cpu", enabled=False):
            return real(x.to(net.low(torch.float32)), *args)

    block.forward = forward
    with autocast(net):
        net.step()


inside("inference_mode", lambda net: torch.inference_mode(), modes=("evaluation",))
inside("no_grad", lambda net: torch.no_grad())
inside("grad mode on", lambda net: torch.set_grad_enabled(True))
inside("grad mode off", lambda net: torch.set_grad_enabled(False))
inside(
    "saved_tensors_hooks",
    lambda net: torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy),
)
inside("save_on_cpu", lambda net: torch.autograd.graph.save_on_cpu())
inside("saved tensors refused", lambda net: torch.autograd.graph.disable_saved_tensors_hooks("not here"))
inside("anomaly mode", lambda net: torch.autograd.detect_anomaly(check_nan=True))
inside("algorithms that are not deterministic", lambda net: not_deterministic())
inside("float64 as the default dtype", lambda net: default_dtype(torch.float64))
inside("float16 as the default dtype", lambda net: default_dtype(torch.float16))
inside("meta as the default device", lambda net: default_device("meta"))
inside("cpu as the default device", lambda net: default_device("cpu"))
inside("a device as a context", lambda net: torch.device("meta"))
inside("without oneDNN", lambda net: torch.backends.mkldnn.flags(enabled=False))
inside("warnings are errors", lambda net: warnings_are_errors())
inside("another thread of autograd", lambda net: torch.autograd.set_multithreading_enabled(False))
inside("mutations of saved tensors allowed", lambda net: torch.autograd.graph.allow_mutation_on_saved_tensors())
inside("profiler", lambda net: torch.profiler.profile(), loose=1e-4)
inside(
    "profiler with shapes and stacks",
    lambda net: torch.profiler.profile(record_shapes=True, with_stack=True, with_modules=True),
)
inside("record_function", lambda net: torch.profiler.record_function("step"))
inside("a mode that looks at functions", lambda net: Counts(), why="inside a mode of torch functions, Counts")
inside(
    "a mode that changes relu",
    lambda net: Scales(torch.relu, torch.nn.functional.relu, torch.relu_),
    kinds=LIVE,
    why="inside a mode of torch functions, Scales",
)
inside(
    "a mode that changes conv2d",
    lambda net: Scales(torch.conv2d, torch.nn.functional.conv2d),
    kinds=LIVE,
    why="inside a mode of torch functions, Scales",
)
inside(
    "a mode that changes batch_norm",
    lambda net: Scales(torch.nn.functional.batch_norm),
    kinds=LIVE,
    why="inside a mode of torch functions, Scales",
)
inside("a mode that looks at operators", lambda net: Looks())
inside("fork_rng", lambda net: torch.random.fork_rng())


@ways(kinds=LIVE, why="global module hook")
def floating_point_operations_counted(net):
    with FlopCounterMode(display=False) as counter:
        net.step()
    net.see(counter.get_total_flops())


@ways(kinds=LIVE)
def an_image_of_inference_mode(net):
    with torch.inference_mode():
        net.x = net.x.detach().clone()
    net.step()


@ways(kinds=LIVE)
def statistics_of_inference_mode(net):
    """A step in inference mode, then one outside."""
    with torch.inference_mode():
        net.ready()(net.another)
    net.step()


@ways(kinds=LIVE, modes=WITH_GRADIENTS)
def gradients_scaled_for_autocast(net):
    with autocast(net, enabled=False):
        loss = net.ready()(net.x).float().square().sum() if not net.exact else net.ready()(net.x).square().sum()
    (loss * 1024).backward()


class Plain(torch.Tensor):
    """A subclass without functions of its own."""


@ways(kinds=LIVE, why="input is a Plain", modes=("evaluation",))
def a_subclass_of_tensor(net):
    net.x = net.x.as_subclass(Plain)
    net.step()
    net.outs = [out.as_subclass(torch.Tensor) for out in net.outs]


test_context = ways.test()
