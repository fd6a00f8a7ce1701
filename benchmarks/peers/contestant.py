"""One model on one batch: made, checked, called. On a CPU in a process of its own (protocol/apart.py)."""

import functools
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from resnet_fused.measure import timing
from resnet_fused.measure.accuracy import budget_used, exact
from resnet_fused.measure.oracle import by_modules, in_float64, with_lively_norms

from ..protocol import apart, harness, zoo
from . import peers

FEW = 8  # images whose results are compared: float64 takes long
OWN_LAYOUT = ("eager", "onnxruntime", "openvino", "ncnn", "mnn", "opencv")  # they would copy a channels_last batch
MODES = {"infer": peers.inference, "train": peers.training}


class Task(NamedTuple):
    """What all contestants do alike. It makes the same network and images in every process."""

    model: str
    mode: str
    dtype: torch.dtype
    batch: int
    size: int
    device: str
    threads: int

    def made(self):
        """(the network, images)."""
        torch.manual_seed(0)
        model = with_lively_norms(zoo.build(self.model)).eval().to(self.device, memory_format=torch.channels_last)
        model = model.to(self.dtype) if self.mode == "infer" else model
        generator = torch.Generator().manual_seed(self.batch)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=generator, device="cpu")
        return model, x.to(self.device).to(self.dtype)


class Contestant:
    """The model `name` on the images `x`; all that is given and returned can be pickled."""

    def __init__(self, name, mode, model, x):
        plain = x if mode == "infer" else x.float()  # autocast rounds it in training
        self.x = plain if name in OWN_LAYOUT else plain.contiguous(memory_format=torch.channels_last)
        make = MODES[mode](model, x)[name]
        self.make = make if mode == "infer" else lambda: _step(make(), x)
        self.infers, self.device, self.disturbed = mode == "infer", x.device.type, 0

    def prepare(self):
        """(columns of the row, results of the first images); where the model cannot run, its row says why."""
        try:
            with torch.set_grad_enabled(not self.infers):
                run, out, first = harness.first_result(self.make, self.x, self.device)
        except (peers.Missing, NotImplementedError) as why:
            return {"missing": str(why)}, None
        except Exception as error:  # of any compiler; the row says so, and of our models the exit status as well
            return {"missing": f"failed: {(str(error) or type(error).__name__).splitlines()[0]}"}, None
        del self.make  # and the network that it holds
        run = functools.partial(run, self.x)
        self.run = torch.no_grad()(run) if self.infers else run
        return {"first_result": first}, [t[:FEW].double().numpy(force=True) for t in tree_leaves(out) if self.infers]

    def seconds(self, calls, alone):
        """Per call. `alone`: the machine should be quiet, and a sample in which it was not is taken again."""
        if self.device == "cuda":
            return timing.cuda_clock(self.run, calls)
        if not alone:
            return timing.wall_clock(self.run, calls)
        found, disturbed = harness.undisturbed(lambda: timing.wall_clock(self.run, calls))
        self.disturbed += disturbed
        return found

    def single_calls(self, calls):
        return harness.single_calls(self.run, self.device, calls)

    def after(self):
        """Columns that are known after the timing: memory of a call, samples that other processes disturbed every time."""
        return {"peak_bytes": harness.peak_bytes(self.run, self.device), "disturbed": self.disturbed}

    def close(self):
        pass


def in_this_process(name, task):
    torch.set_num_threads(task.threads)
    return Contestant(name, task.mode, *task.made())


def starter(task):
    """A function from a name to a Contestant. On a GPU all are in this process and share the network: nothing of a model
    waits on the host's cores, and every process would need a context of its own."""
    if task.device == "cpu":
        return lambda name: apart.Apart(in_this_process, name, task)
    made = task.made()
    return lambda name: Contestant(name, task.mode, *made)


def _step(model, images):
    """A training step as a function of x; autocast where the images are no float32."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    target = torch.randint(10, (len(images),), device=images.device)
    low = images.dtype != torch.float32

    def run(x):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, images.dtype, enabled=low):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


class Gate:
    """What the results of a task should be, in eager and in float64."""

    def __init__(self, task):
        model, x = task.made()
        few = x[:FEW]
        with torch.no_grad():
            self.eager = tree_leaves(by_modules(model)(few))
            self.oracle = tree_leaves(in_float64(model)(exact(few)))

    def columns(self, out):
        """The largest error relative to the largest value, and the share of the error budget: of the worst output. A
        channel of a map may have few values, so the budget is that of all values, as in freeze()."""
        given = [torch.from_numpy(t).to(wide.device) for t, wide in zip(out, self.oracle, strict=True)]
        pairs = list(zip(given, self.eager, self.oracle, strict=True))
        if shapes := [(tuple(t.shape), tuple(wide.shape)) for t, _, wide in pairs if t.shape != wide.shape]:
            return {"missing": "failed: a result has the shape {}, eager's {}".format(*shapes[0])}
        return {
            "error": max(((t - wide).abs().max() / wide.abs().max()).item() for t, _, wide in pairs),
            "budget": max(budget_used(t.to(e.dtype), e, w, channel_dim=None) for t, e, w in pairs),
        }
