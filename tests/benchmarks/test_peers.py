"""Peers that need a GPU or a package, as far as a machine without them can see: why they are missing, what they are asked."""

import sys
import types

import pytest
import torch
from resnets import narrow

from benchmarks.peers import peers, runtimes


def on_gpu(x):
    """What `inference` asks of a batch on a GPU."""
    return type("X", (), {"device": torch.device("cuda"), "dtype": x.dtype})()


@pytest.mark.parametrize(("name", "package"), [
    ("tensorrt", "tensorrt"),
    ("tensorrt, graph", "tensorrt"),
    ("cudnn frontend", "nvidia-cudnn-frontend"),
])  # fmt: skip
def test_packages_that_are_missing_are_named(monkeypatch, name, package):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(peers.Missing, match=f"^the package {package} is not installed"):
        peers.inference(None, on_gpu(torch.empty(1)))[name]()


def test_every_peer_has_a_graph():
    names = set(peers.inference(None, on_gpu(torch.empty(1))))
    alone = {"frozen", "cudnn frontend"}  # frozen is a graph itself
    graphs = {name for name in names if name.endswith(("graph", "graphs"))}
    plain = {name.removesuffix("graphs").removesuffix("graph").rstrip(" ,") for name in graphs}
    assert names - graphs - alone - plain == {"torch.compile max-autotune freezing", "torch.compile freezing"} - plain


def test_max_autotune_may_choose_any_kernel(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, options: seen.append(options) or (lambda x: x))
    for name in ("torch.compile", "torch.compile max-autotune"):
        peers.inference(narrow(), torch.empty(1, 3, 32, 32))[name]()
    assert seen[0] == {} and seen[1]["max_autotune"] and seen[1]["max_autotune_conv_backends"] == "ATEN,TRITON"


def test_what_tensorrt_is_asked(monkeypatch):
    """TensorRT's part is played here: it reads ONNX, and runs on the addresses of input and output."""
    asked = {}

    class Context:
        def get_tensor_shape(self, name):
            return {"y0": (2, 5), "y1": (2, 3)}[name]

        def set_tensor_address(self, name, address):
            asked[name] = address

        def execute_async_v3(self, stream):
            asked["stream"] = stream
            return True

    class Parser:
        def __init__(self, network, logger):
            assert network == "network"

        def parse(self, onnx):
            asked["onnx"] = onnx
            return True

    builder = types.SimpleNamespace(
        create_network=lambda flags: "network" if flags == 2 else None,
        create_builder_config=lambda: "config",
        build_serialized_network=lambda network, config: b"plan",
    )
    engine = types.SimpleNamespace(create_execution_context=Context)
    module = types.ModuleType("tensorrt")
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    module.Builder, module.OnnxParser = lambda logger: builder, Parser
    module.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(runtimes, "_onnx", lambda model, x: (b"onnx", ["y0", "y1"]))
    x = torch.randn(2, 3, 8, 8)
    out = runtimes.tensorrt(None, x)(x)
    assert [(t.shape, t.dtype) for t in out] == [((2, 5), x.dtype), ((2, 3), x.dtype)]
    addresses = {"x": x.data_ptr(), "y0": out[0].data_ptr(), "y1": out[1].data_ptr()}
    assert asked == {"onnx": b"onnx", "stream": 7, **addresses}


class Pyramid(torch.nn.Module):
    """The network and a map of it, in a dict, as detectors' backbones return them."""

    def __init__(self):
        super().__init__()
        self.net = narrow()

    def forward(self, x):
        stem = self.net.conv1(x)
        return {"logits": self.net(x), "map": stem}


@pytest.mark.parametrize("name", runtimes.CPU)
def test_other_runtimes_give_the_results_of_eager(name, capfd):
    if why := peers.why_missing(name, torch.float32):  # an import would print
        pytest.skip(why)
    model, x = Pyramid().eval(), torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        run = peers.inference(model, x)[name]()
        for ours, theirs in zip(run(x), model(x).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert "MNN.tools" not in sys.modules, "its import installs packages and reports to a server"
    assert capfd.readouterr().out == ""
    with pytest.raises(peers.Missing, match=r"is for float32( and bfloat16)?, not float16$"):
        peers.inference(model, x.half())[name]()
