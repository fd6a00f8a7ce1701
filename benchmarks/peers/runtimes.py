"""Inference runtimes: for CPUs ONNX Runtime, OpenVINO, ncnn, MNN and OpenCV (the extra [bench]), for GPUs TensorRT.

All but ncnn get the network as ONNX, from torch. Each returns a function from images to the list of the network's tensors.
"""

import contextlib
import ctypes
import io
import logging
import os
import subprocess
import tempfile
import warnings

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

F32, BF16 = torch.float32, torch.bfloat16
# {name: the dtypes in which it runs on CPUs}. MNN computes in float32 also where it is asked for less.
CPU = {"onnxruntime": (F32,), "openvino": (F32, BF16), "ncnn": (F32, BF16), "mnn": (F32,), "opencv": (F32,)}
# {name: the packages that it needs, as they are imported}
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx"), "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN", "onnx"), "opencv": ("cv2", "onnx"), "tensorrt": ("tensorrt",),
}  # fmt: skip


class Unsupported(Exception):
    """What a runtime cannot do here."""


class _Flat(nn.Module):
    """`model` in float32 as a function to a tuple of tensors, whatever container it returns."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(tree_leaves(self.model(x)))


def _onnx(model, x):
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        flat = _Flat(model)
        names = [f"y{i}" for i in range(len(flat(x)))]
        torch.onnx.export(
            flat, (x.contiguous(),), buffer, input_names=["x"], output_names=names, dynamo=False, opset_version=17
        )
    return buffer.getvalue(), names


@contextlib.contextmanager
def _quietly():
    """A folder, deleted afterwards, and nothing that compiled code prints meanwhile."""
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryDirectory(prefix="resnet_fused_") as folder, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        try:
            yield folder
        finally:
            ctypes.CDLL(None).fflush(None)  # what C kept for later
            for stream, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, stream)
                os.close(descriptor)


def onnxruntime(model, x):
    """ONNX Runtime's CPU provider, all optimisations, as many threads as torch has."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(_onnx(model, x)[0], options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {"x": x.numpy()})]


def openvino(model, x):
    """OpenVINO's CPU plugin for latency, in the precision asked for: left alone it takes bfloat16 where the CPU has it."""
    import openvino as ov

    core = ov.Core()
    onnx, names = _onnx(model.float(), x.float())
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32" if x.dtype == F32 else "bf16",
    }
    request = core.compile_model(core.read_model(onnx), "CPU", settings).create_infer_request()

    def run(x):
        request.infer([x.float().numpy()], share_inputs=True)
        return [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(len(names))]

    return run


def ncnn(model, x):
    """ncnn from a trace, by way of pnnx. It has no batch: the images are run one after the other."""
    import ncnn
    import numpy
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = x.dtype == BF16
    with _quietly() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(_Flat(model.float()), x[:1].float().contiguous(), check_trace=False).save(f"{folder}/net.pt")
        shape = ",".join(map(str, (1, *x.shape[1:])))
        command = (pnnx.EXEC_PATH, "net.pt", f"inputshape=[{shape}]", "fp16=0")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not os.path.exists(f"{folder}/net.ncnn.bin"):
            raise Unsupported("pnnx cannot convert the network: " + (done.stderr.strip() or "no file")[-200:])
        if net.load_param(f"{folder}/net.ncnn.param") or net.load_model(f"{folder}/net.ncnn.bin"):
            raise Unsupported("ncnn cannot load the network")
    names = sorted(net.output_names(), key=lambda name: int(name.removeprefix("out")))

    def one(image):
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image.numpy()))
        found = [extractor.extract(name) for name in names]
        if any(status for status, _ in found):
            raise RuntimeError("ncnn did not run")
        return [torch.from_numpy(numpy.array(y)) for _, y in found]

    return lambda x: [torch.stack(images) for images in zip(*map(one, x.float()), strict=True)]


def mnn(model, x):
    """MNN, converted by the functions of its package: its command line installs packages and reports to a server."""
    with _quietly() as folder:
        import _tools
        import MNN

        onnx, names = _onnx(model, x)
        with open(f"{folder}/net.onnx", "wb") as file:
            file.write(onnx)
        files = ("--modelFile", f"{folder}/net.onnx", "--MNNModel", f"{folder}/net.mnn")
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "none"])
        if not os.path.exists(f"{folder}/net.mnn"):
            raise Unsupported("MNN cannot convert the network")
        manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": torch.get_num_threads()},))
        net = MNN.nn.load_module_from_file(f"{folder}/net.mnn", ["x"], names, runtime_manager=manager)
        shape, nchw = list(x.shape), MNN.expr.NCHW

        def run(x):
            out = net.forward([MNN.expr.const(x.numpy(), shape, nchw)])
            return [torch.from_numpy(MNN.expr.convert(y, nchw).read().copy()) for y in out]

        run(x)  # it prints in its first call
    return run


def opencv(model, x):
    """The dnn module of OpenCV 4."""
    import cv2
    import numpy

    cv2.setNumThreads(torch.get_num_threads())
    onnx, names = _onnx(model, x)
    try:
        net = cv2.dnn.readNetFromONNX(numpy.frombuffer(onnx, numpy.uint8))
    except cv2.error as error:
        raise Unsupported(f"OpenCV cannot read the network: {error.err}") from None

    def run(x):
        net.setInput(x.numpy())
        return [torch.from_numpy(y.copy()) for y in net.forward(names)]

    return run


def tensorrt(model, x):
    """TensorRT for this shape, in the dtypes of the network (strongly typed). No GPU has run it."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    onnx, names = _onnx(model, x)
    if not parser.parse(onnx):
        raise Unsupported(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise Unsupported("TensorRT cannot build the network")
    context = trt.Runtime(logger).deserialize_cuda_engine(plan).create_execution_context()
    outs = [torch.empty(tuple(context.get_tensor_shape(y)), dtype=x.dtype, device=x.device) for y in names]

    def run(x):
        x = x.contiguous()  # NCHW, as the network was exported
        for name, tensor in zip(("x", *names), (x, *outs), strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not run")
        return outs

    return run
