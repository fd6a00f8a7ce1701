"""What keeps a training step out of a CUDA graph, looked for inside of the training ops, where fake tensors do not come."""

import pytest
import torch
from resnets import narrow
from training_cases import X, asks_the_device, block, inside, odd_modes


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_no_operator_of_a_step_asks_the_device(backend, device, monkeypatch, memory_efficient):
    if backend in ("native", "cuda"):
        model, x = odd_modes(narrow(memory_efficient=memory_efficient).train()), torch.randn(X, device=device)
    else:  # slow where interpreted and emulated
        model, x = block("projection", stride=2), torch.randn(2, 16, 6, 6, device=device)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with inside(monkeypatch, asks_the_device) as names:
        model(x).square().sum().backward()
        optimizer.step()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            float(next(b for n, b in model.named_buffers() if n.endswith("bn1.num_batches_tracked")))
    assert any("convolution_backward" in name for name in names)
    ours = {name.split(".")[1] for name in names if name.startswith("resnet_fused_native")}
    assert backend != "native" or {"bn_relu", "bn_relu_backward_reduce", "bn_relu_backward_apply"} <= ours
