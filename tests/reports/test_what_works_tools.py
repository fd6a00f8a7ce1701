"""What works, and what of it is fused: the exporters that tests/ways has not, and torch.jit.script, which is refused.

AOTInductor, which takes minutes: test_aoti.py."""

import io

import pytest
import torch
from what_works import check, check_refused, each_holder
from what_works import test_a_difference_is_seen as test_a_difference_is_seen


@each_holder
def test_jit_script(holder):
    message = "torch.jit.script cannot compile the fused forward of ResNet: use torch.jit.trace or torch.export"
    check_refused(holder, lambda model, x: [torch.jit.script(model)(x)], RuntimeError, message, in_eager=False)


@each_holder
def test_onnx_in_onnx_runtime(holder):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")

    def action(model, x):
        buffer = io.BytesIO()
        with torch.no_grad():
            torch.onnx.export(model, (x,), buffer, dynamo=False)
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: x.numpy()})]

    check(holder, action, "inside torch.jit.trace", fused=False)
