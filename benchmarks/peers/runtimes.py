"""Inference runtimes: for CPUs ONNX Runtime and OpenVINO (the extra [bench]), for GPUs TensorRT. All get the network as ONNX,
from torch."""

import io
import logging
import warnings

import torch


class Unsupported(Exception):
    """What a runtime cannot do here."""


def _onnx(model, x):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            model, (x.contiguous(),), buffer, input_names=["x"], output_names=["y"], dynamo=False, opset_version=17
        )
    return buffer.getvalue()


def onnxruntime(model, x):
    """ONNX Runtime's CPU provider, all optimisations, as many threads as torch has; float32."""
    import onnxruntime as ort

    if x.dtype != torch.float32:
        raise Unsupported(f"ONNX Runtime's CPU convolutions are for float32, not {x.dtype}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(_onnx(model, x), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def openvino(model, x):
    """OpenVINO's CPU plugin for latency, in the precision asked for: left alone it takes bfloat16 where the CPU has it."""
    import openvino as ov

    if x.dtype not in (torch.float32, torch.bfloat16):
        raise Unsupported(f"OpenVINO on CPUs is for float32 and bfloat16, not {x.dtype}")
    core = ov.Core()
    network = core.read_model(_onnx(model.float(), x.float()))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32" if x.dtype == torch.float32 else "bf16",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def run(x):
        request.infer([x.float().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def tensorrt(model, x):
    """TensorRT for this shape, in the dtypes of the network (strongly typed). No GPU has run it."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(_onnx(model, x)):
        raise Unsupported(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise Unsupported("TensorRT cannot build the network")
    context = trt.Runtime(logger).deserialize_cuda_engine(plan).create_execution_context()
    out = torch.empty(tuple(context.get_tensor_shape("y")), dtype=x.dtype, device=x.device)

    def run(x):
        x = x.contiguous()  # NCHW, as the network was exported
        context.set_tensor_address("x", x.data_ptr())
        context.set_tensor_address("y", out.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not run")
        return out

    return run
